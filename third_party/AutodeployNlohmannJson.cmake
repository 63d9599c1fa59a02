# nlohmann-json (MIT): from the system, else its headers from a pinned archive on PyPI.
find_package(nlohmann_json 3.10 QUIET)
if(NOT nlohmann_json_FOUND)
  message(FATAL_ERROR "nlohmann-json >= 3.10 was not found: install nlohmann-json3-dev (Debian, Ubuntu) or pass -Dnlohmann_json_DIR=...")
endif()
