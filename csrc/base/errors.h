// Errors of the LibTorch-free layers, and the one way to build their texts.
//
// check_value  is for what a user gave: throws std::invalid_argument, which Python sees
//              as ValueError. The text says where, what was expected and what was
//              found.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace torchtitan::base {

// Concatenates the printed forms of its arguments.
template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// Throws std::invalid_argument with the message of `parts` unless `holds`.
template <class... Parts>
void check_value(bool holds, const Parts&... parts) {
  if (!holds) throw std::invalid_argument(message(parts...));
}

}  // namespace torchtitan::base
