#define MICROPY_HW_BOARD_NAME               "Beacon"
#define MICROPY_HW_MCU_NAME                 "ESP32-C3"

// For boards whose USB socket is a bridge to the UART.
#define MICROPY_HW_ENABLE_UART_REPL         (1)
