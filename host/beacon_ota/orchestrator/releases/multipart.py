"""Reads the multipart form of an upload from a stream: fields to memory, one file to the disk.

Starlette's ``request.form()`` is not used: it bounds fields (1 MB) and not files, so an upload of
any size would fill the disk before its first check. The parser is python-multipart's, as there.
"""

import hashlib
from typing import BinaryIO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.limits import LIMITS

_BOUNDARY_MAX = 70  # bytes: RFC 2046
_HEADER_MAX = 1024  # bytes of a part's header
_HEADERS_MAX = 8  # of a part


class MultipartForm:
    """A form that is being received.

    Args:
        content_type: the request's header.
        file_field: name of the field that is the file.
        file: receives the file's bytes.
        limit: exclusive upper bound of the file's size, bytes.

    Raises:
        InputError: ``not_multipart``.
    """

    def __init__(self, content_type: str, file_field: str, file: BinaryIO, limit: int):
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 0 < len(boundary) <= _BOUNDARY_MAX:
            raise InputError(
                "not_multipart",
                "the body is not a multipart form",
                found=content_type[:100] or None,
                expected="multipart/form-data; boundary=…",
            )
        self.fields: dict[str, str] = {}
        self.size = 0
        self.complete = False
        self._file_field, self._file, self._limit = file_field, file, limit
        self._digest = hashlib.sha256()
        self._got_file = False
        self._parts = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_name,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_end,
                "on_part_data": self._on_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_form_end,
            },
        )

    @property
    def sha256(self) -> str | None:
        """The hex SHA-256 of the file, None if the form has no file."""
        return self._digest.hexdigest() if self._got_file else None

    def feed(self, data: bytes) -> None:
        """Parse the next bytes of the body.

        Raises:
            InputError: ``form_syntax``, ``form_field``, ``image_too_large``.
        """
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise InputError("form_syntax", f"the form cannot be read: {error}") from None

    def close(self) -> None:
        """Check that the form is complete at the end of the body.

        Raises:
            InputError: ``form_syntax``.
        """
        if not self.complete:
            raise InputError("form_syntax", "the form ends before its last boundary")

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > LIMITS.upload_parts:
            raise InputError("form_field", "too many fields", expected=LIMITS.upload_parts)
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._text = bytearray()

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._name = self._check_header_size(self._name + data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value = self._check_header_size(self._value + data[start:end])

    def _check_header_size(self, header: bytes) -> bytes:
        if len(header) > _HEADER_MAX:
            raise InputError("form_syntax", "a header of a field is too long")
        return header

    def _on_header_end(self) -> None:
        if len(self._headers) >= _HEADERS_MAX:
            raise InputError("form_syntax", "a field has too many headers")
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _on_headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        if not self._field:
            raise InputError("form_syntax", "a field has no name")
        if self._field in self.fields or (self._field == self._file_field and self._got_file):
            raise InputError("form_field", "a field comes twice", found=self._field)
        if self._field == self._file_field:
            self._got_file = True

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._field == self._file_field:
            self.size += end - start
            if self.size >= self._limit:
                raise InputError(
                    "image_too_large",
                    f"the image does not stay under {self._limit} bytes",
                    found=f"{self.size} bytes and more",
                    expected=f"less than {self._limit} bytes",
                )
            piece = data[start:end]
            self._digest.update(piece)
            self._file.write(piece)
            return
        self._text += data[start:end]
        if len(self._text) > LIMITS.upload_field:
            raise InputError("form_field", "a field is too long", found=self._field)

    def _on_part_end(self) -> None:
        if self._field != self._file_field:
            try:
                self.fields[self._field] = self._text.decode()
            except UnicodeDecodeError:
                raise InputError("form_field", "a field is not UTF-8", found=self._field) from None

    def _on_form_end(self) -> None:
        self.complete = True
