// The torch this library was compiled against.
#pragma once

#include <string>

namespace torchtitan::core {

// Version of the headers, e.g. "2.13.0"; without a local part such as "+cpu".
std::string compiled_torch_version();

}  // namespace torchtitan::core
