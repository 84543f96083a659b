#include "parallel/activation_checkpoint/select.h"

#include "base/errors.h"

namespace torchtitan::parallel::activation_checkpoint {

std::vector<bool> select(const std::vector<std::string>& segment_names,
                         const Policy& policy) {
  base::check_value(
      policy.mode != Policy::Mode::kSelective || policy.every >= 1,
      "activation_checkpoint.selective_ac_option: expected a positive number "
      "of layers, found ",
      policy.every);
  std::vector<bool> chosen;
  int64_t block = 0;
  for (const auto& name : segment_names) {
    const bool is_block = name.starts_with("layers.");
    if (is_block) ++block;
    chosen.push_back(is_block && policy.mode != Policy::Mode::kNone &&
                     (policy.mode == Policy::Mode::kFull || block % policy.every == 0));
  }
  return chosen;
}

}  // namespace torchtitan::parallel::activation_checkpoint
