#include <algorithm>
#include <string>
#include <vector>

#include "base/errors.h"
#include "plan/verify.h"

namespace torchtitan::plan {

void verify_agreement(std::span<const Program> programs) {
  const auto starts_of = [](const Program& program) {
    std::vector<std::string> starts;
    for (const Action& action : program) {
      // The norm that clips is a sum over ranks too.
      if ((is_start(action) && !is_host_copy(action)) ||
          action.kind == ActionKind::kClipGradient) {
        starts.push_back(to_string(action));
      }
    }
    starts.push_back("the end");
    return starts;
  };
  if (programs.empty()) return;
  const std::vector<std::string> first = starts_of(programs[0]);
  for (size_t rank = 1; rank < programs.size(); ++rank) {
    const std::vector<std::string> other = starts_of(programs[rank]);
    for (size_t i = 0; i < std::min(first.size(), other.size()); ++i) {
      base::check_value(first[i] == other[i], "communication ", i,
                        " differs between ranks: rank 0 reaches ", first[i], ", rank ",
                        rank, " reaches ", other[i]);
    }
  }
}

}  // namespace torchtitan::plan
