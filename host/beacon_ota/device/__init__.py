"""Hardware on a serial port: flash images onto chips (esptool), the app onto boards (mpremote)."""
