"""The report on an inspected file."""

from beacon_ota.errors import InputError
from beacon_ota.inspect.report import BAD, GOOD, WARN, InspectionReport


def test_only_bad_findings_make_a_file_bad():
    report = InspectionReport("nvs", 4096, "ab" * 32)
    report.add_finding(GOOD, "nvs", "all pages can be read")
    report.add_finding(WARN, "provisioning", "no WiFi")
    assert report.ok and report.as_dict()["ok"] is True
    report.add_error("ota_0", InputError("image_truncated", "too short", found=12))
    assert not report.ok
    assert report.as_dict()["findings"][-1] == {  # type: ignore[index]
        "level": BAD,
        "code": "image_truncated",
        "text": "ota_0: too short (found 12)",
    }
