#include "core/version.h"

#include <torch/headeronly/version.h>

namespace torchtitan::core {

std::string compiled_torch_version() {
  return std::to_string(TORCH_VERSION_MAJOR) + "." +
         std::to_string(TORCH_VERSION_MINOR) + "." +
         std::to_string(TORCH_VERSION_PATCH);
}

}  // namespace torchtitan::core
