from beacon_ota.wire import report

ID = "0123456789abcdef01234567"
SHA = "ab" * 32


def status(**changes):
    doc = {
        "firmware_version": "1.2.3",
        "update_status": "success",
        "updated_at": 1735689085,
        "previous_version": "1.2.2",
        "attempt_id": ID,
        "firmware_id": ID,
        "image_sha256": SHA,
    }
    for name in changes:
        doc[name] = changes[name]
    return doc


def idle(**changes):
    doc = status(update_status="idle")
    del doc["attempt_id"], doc["firmware_id"]
    for name in changes:
        doc[name] = changes[name]
    return doc


def refused(doc):
    try:
        report.check_report(doc)
    except report.ReportError as error:
        assert str(error)
        return error.field
    raise AssertionError(doc)


def test_every_status_has_its_shape():
    report.check_report(status())
    report.check_report(idle())
    report.check_report(status(update_status="downloading", progress=0))
    report.check_report(status(update_status="downloading", progress=100, bytes=5, heap_free_min=9))
    report.check_report(status(update_status="verifying"))
    report.check_report(status(update_status="rebooting"))
    report.check_report(
        status(update_status="failed", stage="download", code="stall", detail="x" * 200)
    )
    report.check_report(status(update_status="rolled_back", stage="boot", code="crash"))
    report.check_report(status(something_new={"a": 1}))


def test_every_code_belongs_to_its_stage():
    for stage in report.CODES:
        for code in report.CODES[stage]:
            report.check_report(status(update_status="failed", stage=stage, code=code))
            for other in report.CODES:
                if code not in report.CODES[other]:
                    doc = status(update_status="failed", stage=other, code=code)
                    assert refused(doc) == "code"


def test_missing_fields():
    for name in status():
        doc = status()
        del doc[name]
        assert refused(doc) == name
    assert refused(status(update_status="downloading")) == "progress"
    assert refused(status(update_status="failed")) == "stage"
    assert refused(status(update_status="failed", stage="flash")) == "code"
    assert refused(status(update_status="rolled_back", stage="flash", code="write")) == "stage"


def test_idle_speaks_of_no_attempt():
    assert refused(idle(attempt_id=ID)) == "attempt_id"
    assert refused(idle(firmware_id=ID)) == "firmware_id"


def test_wrong_types_are_named():
    for name, values in (
        ("update_status", (None, 5, "Success", ["idle"], {})),
        ("firmware_version", (None, "", "1", 5, ["1.2.3"])),
        ("previous_version", (None, "x")),
        ("updated_at", (None, -1, "5", 1.5, True, 1 << 70)),
        ("attempt_id", (None, ID.upper(), ID[:-1], ID + "0", 7, [])),
        ("firmware_id", ("", "g" * 24)),
        ("image_sha256", (None, SHA[:-1], SHA.upper(), bytes(32))),
        ("bytes", ("1", -1, True, 1.0, None, 1 << 60)),
        ("trials", (-1, [])),
        ("clock_unset", (False, 1, "true")),
        ("insecure", (None, False)),
    ):
        for value in values:
            assert refused(status(**{name: value})) == name, (name, value)
    for value in (None, -1, 101, "50", True, 2.0):
        assert refused(status(update_status="downloading", progress=value)) == "progress"
    for value in (None, 5, "x" * 201, "é" * 101):
        doc = status(update_status="failed", stage="flash", code="write", detail=value)
        assert refused(doc) == "detail", value
    for doc in (None, [], "x", 5):
        assert refused(doc) == "body"


def test_journal():
    entry = [1, 0, "boot", "crash", "x" * 80]
    report.check_report(idle(journal=[]))
    report.check_report(idle(journal=[entry, [2, 1735689085, "wifi", "drop", ""]]))
    report.check_report(idle(journal=[[i, 0, "a", "b", "é" * 80] for i in range(1, 9)]))
    for bad in (
        None,
        {},
        "x",
        [[i, 0, "a", "b", ""] for i in range(1, 10)],
        [entry, entry],
        [[2, 0, "a", "b", ""], [1, 0, "a", "b", ""]],
        [entry[:4]],
        [entry + [1]],
        [5],
        [[0, 0, "a", "b", ""]],
        [[1 << 31, 0, "a", "b", ""]],
        [["1", 0, "a", "b", ""]],
        [[1, -1, "a", "b", ""]],
        [[1, 0, "", "b", ""]],
        [[1, 0, "A", "b", ""]],
        [[1, 0, "a", "b" * 17, ""]],
        [[1, 0, "a", None, ""]],
        [[1, 0, "a", "b", "x" * 81]],
        [[1, 0, "a", "b", None]],
    ):
        assert refused(idle(journal=bad)) == "journal", bad


def test_a_final_report_survives_its_decoration():
    whole = status(update_status="failed", stage="flash", code="write", detail="sector 3", bytes=7)
    assert report.read_report(whole) == (whole, [])
    for name, values in (
        ("firmware_version", (None, "", "1", 5)),
        ("previous_version", (None, "x")),
        ("updated_at", (None, -1, True, 1 << 70, float("inf"))),
        ("image_sha256", (None, "", SHA.upper())),
        ("bytes", ("1", -1, True, 1.5, None, 1 << 60, float("inf"))),
        ("clock_unset", (False, 1, None)),
        ("detail", (None, 5, [])),
    ):
        for value in values:
            doc = dict(whole)
            doc[name] = value
            fields, faults = report.read_report(doc)
            assert faults == [name] and name not in fields, (name, value)
            for other in whole:
                assert other == name or fields[other] == whole[other]
            assert doc[name] is value  # what was sent is left alone


def test_what_a_report_cannot_do_without():
    for doc, field in (
        ([], "body"),
        (status(update_status="odd"), "update_status"),
        (status(update_status="failed", attempt_id="x"), "attempt_id"),
        (status(update_status="rebooting", firmware_id=None), "firmware_id"),
        (status(image_sha256=""), "image_sha256"),  # a success is the image's
        (status(image_sha256="", updated_at=-1), "image_sha256"),
    ):
        try:
            report.read_report(doc)
        except report.ReportError as error:
            assert error.field == field
        else:
            raise AssertionError(doc)


def test_details_are_cut():
    for sent, kept in (
        ("x" * 300, "x" * 200),
        ("é" * 150, "é" * 100),
    ):
        doc = status(update_status="failed", stage="flash", code="write", detail=sent)
        fields, faults = report.read_report(doc)
        assert fields["detail"] == kept and faults == ["detail"]


def test_a_reason_that_is_not_known_is_still_read_by_people():
    for word, stage, code, detail, kept in (
        ("failed", "flash", "melted", "sector 3", "flash/melted: sector 3"),
        ("failed", "radio", "noise", None, "radio/noise"),
        ("rolled_back", "flash", "write", "x" * 200, "flash/write: " + "x" * 187),
        ("failed", 5, [], "as it was", "as it was"),
    ):
        doc = status(update_status=word, stage=stage, code=code, detail=detail)
        fields, faults = report.read_report(doc)
        assert fields["detail"] == kept and faults[0] in ("stage", "code")
        assert "stage" not in fields and "code" not in fields


def test_idle_lets_go_of_an_attempt():
    fields, faults = report.read_report(idle(attempt_id=ID, firmware_id="x"))
    assert faults == ["attempt_id", "firmware_id"]
    assert "attempt_id" not in fields and "firmware_id" not in fields


def test_the_journal_is_left_to_its_own_rule():
    for sent in (None, "x", [5], [[1, 0, "a", "b" * 17, ""]]):
        fields, faults = report.read_report(idle(journal=sent))
        assert faults == ["journal"] and fields["journal"] == sent
