"""The database's writer reads nothing of the fleet's state: by the source, and as it runs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import beacon_ota.orchestrator
from beacon_ota.orchestrator.db.guard import ReadByWriter

SOURCE = Path(beacon_ota.orchestrator.__file__).parent
# Objects that go on while the writer runs: by their usual names, by annotation, by where they are.
NAMES = {"self", "service", "fleet", "engine", "node", "entry", "caller", "hub", "clock", "request"}
KINDS = {
    *("FleetState", "BeaconState", "RolloutEntry", "Release", "Service", "Attempts", "Engine"),
    *("WebhookDispatcher", "Mirror", "Caller"),
}
HOLDERS = {"fleet", "beacons", "releases", "rollouts", "beacon"}
QUEUES = {"write": ("db",), "read_in_order": ("db",), "change_audited": ("service", "self")}
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def last_name(node: ast.AST) -> str:
    """Return ``c`` of ``a.b.c``, ``a`` of ``a``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def is_holder(node: ast.AST) -> bool:
    """Tell whether an expression is one of the fleet's tables (a module may be called so, too)."""
    return isinstance(node, ast.Attribute) and node.attr in HOLDERS


def moving(node: ast.AST | None, known: set[str]) -> bool:
    """Tell whether an expression is an object that goes on by itself."""
    while isinstance(node, ast.Await):
        node = node.value
    if isinstance(node, ast.Name):
        return node.id in known
    if isinstance(node, ast.IfExp):
        return moving(node.body, known) or moving(node.orelse, known)
    if isinstance(node, ast.Attribute):
        return is_holder(node)
    if isinstance(node, ast.Subscript):
        return is_holder(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in ("get", "values") and is_holder(node.func.value)
    return False


def moving_names(function: Function, known: set[str]) -> set[str]:
    """Return the names in a function that stand for such objects."""
    found = set(known)
    for one in [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]:
        found.discard(one.arg)
        words = {last_name(part) for part in ast.walk(one.annotation)} if one.annotation else set()
        if words & KINDS or one.arg in NAMES:
            found.add(one.arg)
    for node in ast.walk(function):
        pairs: list[tuple[ast.AST, ast.AST | None]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.For | ast.comprehension):
            pairs = [(node.target, node.iter)]
        found |= {last_name(target) for target, value in pairs if moving(value, found)} - {""}
    return found


def reads(function: Function, known: set[str]) -> Iterator[str]:
    """Say what a function that the writer runs reads and must not."""
    own = {one.arg for one in function.args.args}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id in known - own:
            yield f"line {node.lineno}: reads {node.id}"
        elif isinstance(node, ast.Attribute) and node.attr == "fleet":
            yield f"line {node.lineno}: reads the fleet's state"


def faults(node: ast.AST, known: set[str]) -> Iterator[str]:
    """Say where a source hands something to the writer that goes on by itself."""
    for child in ast.iter_child_nodes(node):
        inside = known
        if isinstance(child, Function):
            first = child.args.args[0].arg if child.args.args else ""
            listener = bool(getattr(child, "decorator_list", ()))  # SQLAlchemy calls it
            if first == "conn" and known is not NAMES and not listener:
                yield from reads(child, known)
            inside = moving_names(child, known)
        elif isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute):
            yield from goes_in(child, child.func, known)
        yield from faults(child, inside)


def goes_in(call: ast.Call, queue: ast.Attribute, known: set[str]) -> Iterator[str]:
    if last_name(queue.value) not in QUEUES.get(queue.attr, ()):
        return
    for number, given in enumerate(call.args):
        method = isinstance(given, ast.Attribute) and last_name(given.value) in known
        bound = method and number == (3 if queue.attr == "change_audited" else 0)
        if moving(given, known) or bound:
            yield f"line {given.lineno}: {ast.unparse(given)} goes to the writer"


def found_in(source: str) -> list[str]:
    return list(faults(ast.parse(source), NAMES))


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.stem)
def test_what_goes_to_the_writer_is_values(path):
    assert not found_in(path.read_text())


BAD = {
    "an entry's revision": """
async def commit(self, entry):
    def work(conn):
        return advance(conn, entry.revision)
    await self.service.db.write(work)
""",
    "a beacon's key": """
async def adopt(self, one: BeaconState):
    await self.change_audited("a", "b", "c", lambda conn: change(conn, one.next_key))
""",
    "by another name": """
async def settle(service, attempt):
    found = service.fleet.releases[attempt.firmware_id]
    def work(conn):
        return found.row
    await service.db.write(work)
""",
    "as an argument": """
async def settle(service, attempt):
    release = service.fleet.releases.get(attempt.firmware_id)
    await service.db.write(record, release)
""",
    "looked up in the call": """
async def settle(service, attempt):
    await service.db.write(record, service.fleet.beacons[attempt.beacon_id])
""",
    "perhaps": """
async def settle(service, attempt):
    await service.db.write(record, None if attempt is None else service.fleet.beacons[attempt.id])
""",
    "a method": """
async def settle(self):
    await self.db.write(self.record)
""",
    "in order": """
async def settle(self):
    await self.db.read_in_order(lambda conn: read(conn, self.seq), then=print)
""",
    "from a loop": """
async def settle(service):
    for one in service.fleet.rollouts.values():
        def work(conn):
            return one.state
        await service.change_audited("a", "b", "c", work)
""",
}


@pytest.mark.parametrize("source", BAD.values(), ids=BAD)
def test_the_source_is_searched_for_reads(source):
    assert found_in(source)


def test_values_may_go_to_the_writer():
    assert not found_in(
        """
async def commit(self, entry: RolloutEntry):
    revision, state = entry.revision, entry.state
    def work(conn, name=None):
        return advance(conn, revision, state)
    await self.service.db.write(work, entry.rollout.plan.rollout_id, then=self.put)
"""
    )


def test_a_read_by_the_writer_raises_and_one_by_the_loop_does_not(local, tmp_path):
    (beacon,) = local.beacons(1)
    view = local.service.fleet
    node = view.beacons[beacon.id]

    async def write(work):
        return await local.service.db.write(work)

    for read in (
        lambda _conn: node.key,
        lambda _conn: view.beacons,
        lambda _conn: view.active_rollouts("x"),
    ):
        with pytest.raises(ReadByWriter):
            local.call(write(read))
    assert node.key == beacon.key and beacon.poll().status == 204
