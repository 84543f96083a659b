# toml++ (header only): a given path, else the system's package, else a pinned download.
#   result: interface target torchtitan_tomlplusplus
find_path(TOMLPLUSPLUS_INCLUDE_DIR toml++/toml.h
          HINTS "${TOMLPLUSPLUS_ROOT}" "${TOMLPLUSPLUS_ROOT}/include")
if(NOT TOMLPLUSPLUS_INCLUDE_DIR)
  set(version 3.4.0)
  set(folder "${CMAKE_BINARY_DIR}/tomlplusplus-${version}")
  set(url "https://github.com/marzer/tomlplusplus/archive/refs/tags/v${version}.tar.gz")
  file(DOWNLOAD "${url}" "${folder}.tar.gz" STATUS status TIMEOUT 30
       EXPECTED_HASH SHA256=8517f65938a4faae9ccf8ebb36631a38c1cadfb5efa85d9a72e15b9e97d25155)
  list(GET status 0 code)
  if(code EQUAL 0)
    file(ARCHIVE_EXTRACT INPUT "${folder}.tar.gz" DESTINATION "${CMAKE_BINARY_DIR}")
    set(TOMLPLUSPLUS_INCLUDE_DIR "${folder}/include" CACHE PATH "" FORCE)
  else()
    message(FATAL_ERROR
      "toml++ is not installed and could not be downloaded. Run:\n"
      "  apt-get install libtomlplusplus-dev\n"
      "or pass -DTOMLPLUSPLUS_ROOT=<folder that holds toml++/toml.h>")
  endif()
endif()
add_library(torchtitan_tomlplusplus INTERFACE)
target_include_directories(torchtitan_tomlplusplus SYSTEM INTERFACE "${TOMLPLUSPLUS_INCLUDE_DIR}")
