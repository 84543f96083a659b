#include "plan/program.h"

namespace torchtitan::plan {

std::string to_string(const Program& program) {
  std::string text;
  for (const Action& action : program) text += to_string(action) + "\n";
  return text;
}

}  // namespace torchtitan::plan
