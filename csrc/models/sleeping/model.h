// A model that only takes time: each block sleeps in its forward and in both halves of
// its backward. On it a schedule's bubble is that of the program and of whoever runs
// it, for no arithmetic comes between.
//
// Values: "input" [B, S], a floating-point tensor, passes through all blocks as "h" of
// the same shape; the last one gives its sum as "loss". Each block has one parameter of
// one element, which is added.
#pragma once

#include <chrono>
#include <memory>

#include "nn/model.h"

namespace torchtitan::models::sleeping {

// What the blocks of one rank did since the last reset(), which stands before each
// step. Of one thread at a time.
class Diary {
 public:
  using Clock = std::chrono::steady_clock;

  // Sleeps and takes note.
  void work(Clock::duration length);
  void reset() { *this = Diary(); }

  int64_t num_works() const { return num_works_; }
  Clock::time_point begin() const { return begin_; }  // of the first work
  Clock::time_point end() const { return end_; }      // of the last one
  Clock::duration busy() const { return busy_; }      // sum over all of them

 private:
  int64_t num_works_ = 0;
  Clock::time_point begin_, end_;
  Clock::duration busy_{};
};

// Blocks that sleep for `length` in forward, in backward for their input, and in
// backward for their parameter, and write it down in `diary`.
// Throws ValueError for fewer than one block.
nn::Model build(int64_t num_blocks, Diary::Clock::duration length,
                const std::shared_ptr<Diary>& diary);

}  // namespace torchtitan::models::sleeping
