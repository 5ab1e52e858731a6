"""The administrator of the campaign of kills."""

from beacon_ota.campaign.kills.fleet import roll_out_once


class Client:
    """A client of an orchestrator that has lost the answer to the first order."""

    def __init__(self):
        self.made = []

    def list_rollouts(self):
        return iter(self.made)

    def create_rollout(self, firmware_id, plan):
        self.made.append({"firmware_id": firmware_id, "rollout_id": f"r{len(self.made)}"})
        return self.made[-1]


def test_a_repeated_order_makes_no_second_rollout():
    client = Client()
    first = roll_out_once(client, "f1")  # type: ignore[arg-type]
    assert roll_out_once(client, "f1") == first  # type: ignore[arg-type]
    assert roll_out_once(client, "f2") != first  # type: ignore[arg-type]
    assert len(client.made) == 2
