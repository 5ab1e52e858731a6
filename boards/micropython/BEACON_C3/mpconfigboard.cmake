# A core with the beacon's app frozen in, for one of the boards in boards/.
#
#   BEACON_BOARD    device type: a folder of boards/            (default esp32c3)
#   BEACON_VERSION  version of the release, semver               (default 0.0.0-dev)

include(boards/mpconfigboard_esp32c3_common.cmake)

if(NOT BEACON_BOARD)
    set(BEACON_BOARD esp32c3)
endif()
if(NOT BEACON_VERSION)
    set(BEACON_VERSION 0.0.0-dev)
endif()

# The layout is the board's own CSV; only the default board's lies elsewhere.
set(BEACON_ROOT ${MICROPY_BOARD_DIR}/../../..)
if(EXISTS ${BEACON_ROOT}/boards/${BEACON_BOARD}/partitions.csv)
    set(BEACON_PARTITIONS ${BEACON_ROOT}/boards/${BEACON_BOARD}/partitions.csv)
else()
    set(BEACON_PARTITIONS ${BEACON_ROOT}/partitions.csv)
endif()
get_filename_component(BEACON_PARTITIONS ${BEACON_PARTITIONS} ABSOLUTE)
if(BEACON_BOARD MATCHES "8mb$")
    set(BEACON_FLASH 8MB)
else()
    set(BEACON_FLASH 4MB)
endif()

# A core with a frozen app is a release by itself: its app description says of what and which.
string(LENGTH "${BEACON_BOARD} ${BEACON_VERSION}" BEACON_LENGTH)
if(BEACON_LENGTH GREATER 31)
    message(FATAL_ERROR "board and version have more than 31 characters: ${BEACON_BOARD} ${BEACON_VERSION}")
endif()

file(WRITE ${CMAKE_BINARY_DIR}/sdkconfig.beacon "
CONFIG_ESPTOOLPY_FLASHSIZE_${BEACON_FLASH}=y
CONFIG_PARTITION_TABLE_CUSTOM=y
CONFIG_PARTITION_TABLE_CUSTOM_FILENAME=\"${BEACON_PARTITIONS}\"
CONFIG_APP_EXCLUDE_PROJECT_VER_VAR=n
CONFIG_APP_PROJECT_VER_FROM_CONFIG=y
CONFIG_APP_PROJECT_VER=\"${BEACON_BOARD} ${BEACON_VERSION}\"
")

list(APPEND SDKCONFIG_DEFAULTS
    ${MICROPY_BOARD_DIR}/sdkconfig.board
    ${CMAKE_BINARY_DIR}/sdkconfig.beacon
)

if(NOT MICROPY_FROZEN_MANIFEST)
    set(MICROPY_FROZEN_MANIFEST ${MICROPY_BOARD_DIR}/manifest.py)
endif()
