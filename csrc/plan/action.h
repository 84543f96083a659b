#pragma once
#include <cstdint>
namespace torchtitan::plan {
enum class ActionKind { kCountTokens, kUnshard, kReshard, kForward, kRecompute, kBackward, kReduceGradient, kAllReduceGradient, kWait, kClipGradient, kOptimizerStep, kCall };
struct Action { ActionKind kind; int64_t segment = -1; int64_t group = -1; int64_t microbatch = -1; ActionKind waits_for = ActionKind::kCall; };
}
