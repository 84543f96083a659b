// Faults on purpose, for tests of what a save, a load and a purge survive.
//
// Only a build with -DTORCHTITAN_FAULT_POINTS=ON has them, and no wheel is built with
// it; in every other build fault_at() is a constant and nothing of this is left.
//
//   TORCHTITAN_FAULT=<point>:<kind>:<n>[:<rank>]
//     point  an operation on files, just before it: create, open, read, write, sync,
//            mkdir, rename, remove; or a point named in commit.h, when it is reached
//     kind   kill   the process ends by SIGKILL
//            stall  the process stops by SIGSTOP
//            flip   one bit of what is written or read is another one
//            EIO, ENOSPC, EROFS, EDQUOT   the operation fails with this error
//     n      at the n-th time in this process, from 1
//     rank   only in the process whose variable RANK is this number
#pragma once

#include <cerrno>
#include <cstddef>
#include <span>
#include <string_view>

namespace torchtitan::storage {

struct Fault {
  int code = 0;        // errno to fail with; 0: none
  bool flips = false;  // change one bit of the data
};

#ifdef TORCHTITAN_FAULT_POINTS

inline constexpr bool kHasFaultPoints = true;

// Counts that the point was reached. Kills or stops the process where that is asked.
Fault fault_at(std::string_view point);

// Replaces what the variable says and counts from 1 again; an empty text means no
// fault. Throws std::invalid_argument for a text that is no fault.
void set_fault(std::string_view text);

// Whether the fault that is set has happened.
bool fault_has_happened();

#else

inline constexpr bool kHasFaultPoints = false;
constexpr Fault fault_at(std::string_view) { return {}; }

#endif

// Whether the operation is to fail; errno says how.
inline bool fails_at(std::string_view point) {
  const Fault fault = fault_at(point);
  if (fault.code != 0) errno = fault.code;
  return fault.code != 0;
}

// Changes one bit in the middle.
inline void flip_bit(std::span<std::byte> data) {
  if (!data.empty()) data[data.size() / 2] ^= std::byte{0x10};
}

}  // namespace torchtitan::storage
