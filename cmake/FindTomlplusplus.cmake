# toml++ (header only): a given path, else the system's package, else a pinned download.
#   TOMLPLUSPLUS_ROOT   folder that holds toml++/toml.h, or holds it in include/
#   result: interface target torchtitan_tomlplusplus
set(TOMLPLUSPLUS_ROOT "$ENV{TOMLPLUSPLUS_ROOT}" CACHE PATH
    "Folder that holds toml++/toml.h, when it is not installed in the system")

if(TOMLPLUSPLUS_ROOT)
  find_path(tomlplusplus toml++/toml.h NO_CACHE NO_DEFAULT_PATH
            PATHS "${TOMLPLUSPLUS_ROOT}" "${TOMLPLUSPLUS_ROOT}/include")
  if(NOT tomlplusplus)
    message(FATAL_ERROR
      "TOMLPLUSPLUS_ROOT is '${TOMLPLUSPLUS_ROOT}', but there is no toml++/toml.h in it")
  endif()
else()
  find_path(tomlplusplus toml++/toml.h NO_CACHE)
endif()
if(NOT tomlplusplus)
  set(version 3.4.0)
  set(tomlplusplus "${CMAKE_BINARY_DIR}/tomlplusplus-${version}/include")
  if(NOT EXISTS "${tomlplusplus}/toml++/toml.h")
    set(url "https://github.com/marzer/tomlplusplus/archive/refs/tags/v${version}.tar.gz")
    set(sha256 8517f65938a4faae9ccf8ebb36631a38c1cadfb5efa85d9a72e15b9e97d25155)
    set(archive "${CMAKE_BINARY_DIR}/tomlplusplus-${version}.tar.gz")
    # No EXPECTED_HASH: without a network it would fail before the message below.
    file(DOWNLOAD "${url}" "${archive}" STATUS status TIMEOUT 60)
    list(GET status 0 failed)
    if(NOT failed)
      file(SHA256 "${archive}" found)
      if(NOT found STREQUAL sha256)
        set(failed TRUE)
        set(status "its sha256 is ${found}, expected ${sha256}")
      endif()
    endif()
    if(failed)
      file(REMOVE "${archive}")
      message(FATAL_ERROR
        "toml++ is not installed, and ${url} could not be downloaded (${status}). Run:\n"
        "  apt-get install libtomlplusplus-dev\n"
        "or pass -DTOMLPLUSPLUS_ROOT=<folder that holds toml++/toml.h>")
    endif()
    file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${CMAKE_BINARY_DIR}")
  endif()
endif()
message(STATUS "toml++ at ${tomlplusplus}")
add_library(torchtitan_tomlplusplus INTERFACE)
target_include_directories(torchtitan_tomlplusplus SYSTEM INTERFACE "${tomlplusplus}")
