"""Release images on their way in and out: uploads, checks, byte ranges."""
