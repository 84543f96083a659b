#include "plan/program.h"
namespace torchtitan::plan {
std::string to_string(const Action& a) { return std::to_string(static_cast<int>(a.kind)); }
}
