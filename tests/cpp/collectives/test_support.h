// What the tests of this folder share.
#pragma once

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

namespace torchtitan::collectives {

// `action` must throw c10::ValueError with `part` in its message.
inline void expect_value_error(const std::string& part,
                               const std::function<void()>& action) {
  try {
    action();
    ADD_FAILURE() << "nothing was thrown, expected: " << part;
  } catch (const c10::ValueError& error) {
    const std::string text = error.what_without_backtrace();
    EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks: " << part;
  }
}

}  // namespace torchtitan::collectives
