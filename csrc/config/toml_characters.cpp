#include "config/toml_characters.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <stdexcept>

#include "base/errors.h"

namespace torchtitan::config {
namespace {

constexpr std::string_view kMark = "\xEF\xBB\xBF";

constexpr std::string_view kEndsValue = " \t\r\n]},#";
constexpr std::string_view kNoValue = " \t\r\n]},[{";

bool is_ascii(char c) { return static_cast<unsigned char>(c) < 0x80; }

// The first byte of a character, not one of those that continue it.
bool starts_character(char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }

// Copies the text token by token. Of a text that is no TOML it need only see the start
// as toml++ does, up to the first error.
class Scanner {
 public:
  Scanner(std::string_view text, std::string_view source)
      : text_(text), source_(source) {}

  std::string run() {
    if (text_.starts_with(kMark)) copy(kMark.size());
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '#') {
        copy(std::min(text_.find('\n', at_), text_.size()) - at_);
      } else if (c == '"' || c == '\'') {
        const std::string quotes(3, c);
        text_.substr(at_).starts_with(quotes) ? copy_lines(quotes) : copy_line(c);
      } else if (!in_key_ && kNoValue.find(c) == std::string_view::npos) {
        copy_value();
      } else {
        check_ascii();
        follow(c);
        copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  // Whether keys or values come behind this character.
  void follow(char c) {
    if (c == '=') in_key_ = false;
    if (c == '\n' && open_.empty()) in_key_ = true;
    if (c == ',' && open_.ends_with('{')) in_key_ = true;
    if (c == '{' || (c == '[' && !in_key_)) {
      open_ += c;
      in_key_ = c == '{';
    }
    if ((c == '}' || (c == ']' && !in_key_)) && !open_.empty()) {
      open_.pop_back();
      in_key_ = false;
    }
  }

  // A value without quotes, to its end; quotes in the middle of it begin no string.
  void copy_value() {
    for (; at_ < text_.size() && kEndsValue.find(text_[at_]) == std::string_view::npos;
         copy(1)) {
      check_ascii();
    }
  }

  void check_ascii() const {
    if (is_ascii(text_[at_])) return;
    fail("expected no character beyond ASCII outside of strings and comments");
  }

  void copy(size_t count) {
    count = std::min(count, text_.size() - at_);
    out_ += text_.substr(at_, count);
    at_ += count;
  }

  // A string that ends on its line.
  void copy_line(char quote) {
    copy(1);
    while (at_ < text_.size() && text_[at_] != quote) {
      if (text_[at_] == '\n') {  // toml++ stops here
        copy(text_.size());
        return;
      }
      copy(text_[at_] == '\\' && quote == '"' ? 2 : 1);
    }
    copy(1);
  }

  void copy_lines(const std::string& quotes) {
    copy(quotes.size());
    while (at_ < text_.size() && !text_.substr(at_).starts_with(quotes)) {
      if (text_[at_] == '\\' && quotes[0] == '"') {
        copy_escape();
      } else {
        copy(1);
      }
    }
    copy(quotes.size());
    // One or two more belong to the string.
    for (int i = 0; i < 2 && at_ < text_.size() && text_[at_] == quotes[0]; ++i) {
      copy(1);
    }
  }

  void copy_escape() {
    copy(1);
    if (at_ == text_.size()) return;
    if (!is_ascii(text_[at_])) fail("expected an escape sequence");
    const size_t end = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size());
    if (end == at_) {
      copy(1);
      return;
    }
    copy(end - at_);
    if (at_ < text_.size() && !is_ascii(text_[at_])) replace_character();
  }

  // Leaves bytes that are no UTF-8 as they are: toml++ refuses them.
  void replace_character() {
    const auto first = static_cast<unsigned char>(text_[at_]);
    const size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4 || text_.size() - at_ < size) return;
    uint32_t code = first & (0xFFu >> (size + 1));
    for (size_t i = 1; i < size; ++i) {
      if (starts_character(text_[at_ + i])) return;
      code = code << 6 | (static_cast<unsigned char>(text_[at_ + i]) & 0x3Fu);
    }
    const bool is_overlong =
        (size == 3 && code < 0x800) || (size == 4 && code < 0x10000);
    if (is_overlong || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return;
    char escape[11];
    std::snprintf(escape, sizeof(escape), "\\U%08X", code);
    out_ += escape;
    at_ += size;
  }

  [[noreturn]] void fail(std::string_view what) const {
    const std::string_view before = text_.substr(0, at_);
    const size_t line_start = before.rfind('\n') + 1;
    std::string_view line = before.substr(line_start);
    if (line_start == 0 && line.starts_with(kMark)) line.remove_prefix(kMark.size());
    throw std::invalid_argument(base::message(
        source_, ":", 1 + std::count(before.begin(), before.end(), '\n'), ":",
        1 + std::count_if(line.begin(), line.end(), starts_character), ": ", what));
  }

  std::string_view text_, source_;
  size_t at_ = 0;
  std::string open_;  // [ of arrays and { of inline tables
  bool in_key_ = true;
  std::string out_;
};

}  // namespace

std::string with_safe_characters(std::string_view text, std::string_view source) {
  return Scanner(text, source).run();
}

}  // namespace torchtitan::config
