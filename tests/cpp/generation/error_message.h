// What a call that must fail says.
#pragma once

#include <c10/util/Exception.h>

#include <string>

namespace torchtitan::generation {

// Of the c10::ValueError that `call` throws; empty if it throws none.
template <class Call>
std::string message(const Call& call) {
  try {
    call();
  } catch (const c10::ValueError& error) {
    return error.what_without_backtrace();
  }
  return "";
}

}  // namespace torchtitan::generation
