"""Release images on their way in and out: uploads, validation, byte ranges."""
