# nlohmann-json (MIT): target nlohmann_json::nlohmann_json. Looked for in this order: the system's CMake package; the Python package
# nlohmann-json, which carries the headers (a build requirement of the wheel); the same archive from PyPI, pinned and hash-checked.
set(AUTODEPLOY_JSON_VERSION 3.12.0)
set(AUTODEPLOY_JSON_SHA256 5f6132720fb25d0d70bf0742f8397b49a540dcc193e7312a914f6aa49f054810)

find_package(nlohmann_json 3.10 QUIET)
if(NOT nlohmann_json_FOUND)
  find_package(Python COMPONENTS Interpreter QUIET)
  set(candidates ${AUTODEPLOY_JSON_ROOT})
  if(Python_EXECUTABLE)
    execute_process(
      COMMAND ${Python_EXECUTABLE} -c "import nlohmann_json, os; print(os.path.join(os.path.dirname(nlohmann_json.__file__), 'include'))"
      OUTPUT_VARIABLE from_python OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    list(APPEND candidates ${from_python})
  endif()
  set(fetched ${CMAKE_BINARY_DIR}/third_party/nlohmann_json)
  list(APPEND candidates ${fetched}/nlohmann_json/include)
  find_path(AUTODEPLOY_JSON_INCLUDE nlohmann/json.hpp HINTS ${candidates})
  if(NOT AUTODEPLOY_JSON_INCLUDE AND Python_EXECUTABLE)
    message(STATUS "Fetching nlohmann-json ${AUTODEPLOY_JSON_VERSION} from PyPI")
    file(MAKE_DIRECTORY ${fetched})
    file(WRITE ${fetched}/requirements.txt "nlohmann-json==${AUTODEPLOY_JSON_VERSION} --hash=sha256:${AUTODEPLOY_JSON_SHA256}\n")
    execute_process(COMMAND ${Python_EXECUTABLE} -m pip download -q --no-deps --only-binary=:all: --require-hashes
                            -d ${fetched} -r ${fetched}/requirements.txt RESULT_VARIABLE failed)
    file(GLOB wheel ${fetched}/*.whl)
    if(NOT failed AND wheel)
      file(ARCHIVE_EXTRACT INPUT ${wheel} DESTINATION ${fetched} PATTERNS "nlohmann_json/include/*" "*LICENSE*")
    endif()
    unset(AUTODEPLOY_JSON_INCLUDE CACHE)
    find_path(AUTODEPLOY_JSON_INCLUDE nlohmann/json.hpp HINTS ${candidates})
  endif()
  if(NOT AUTODEPLOY_JSON_INCLUDE)
    message(FATAL_ERROR "nlohmann-json >= 3.10 was not found and could not be fetched: install nlohmann-json3-dev (Debian, Ubuntu), "
                        "pip install nlohmann-json, or pass -DAUTODEPLOY_JSON_ROOT=<folder that holds nlohmann/json.hpp>")
  endif()
  add_library(autodeploy_nlohmann_json INTERFACE)
  target_include_directories(autodeploy_nlohmann_json SYSTEM INTERFACE ${AUTODEPLOY_JSON_INCLUDE})
  add_library(nlohmann_json::nlohmann_json ALIAS autodeploy_nlohmann_json)
endif()
