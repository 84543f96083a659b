#include "base/json_reader.h"

#include <charconv>

#include "base/errors.h"

namespace torchtitan::base {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(std::string& out, unsigned code) {
  const auto put = [&out](unsigned byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xC0 | code >> 6);
  } else {
    if (code < 0x10000) {
      put(0xE0 | code >> 12);
    } else {
      put(0xF0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3F));
    }
    put(0x80 | (code >> 6 & 0x3F));
  }
  put(0x80 | (code & 0x3F));
}

// Length of the well-formed sequence at the start of `text`, 0 when it is not
// well-formed (Unicode 15, table 3-7).
size_t utf8_length(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  if (first < 0xC2 || first > 0xF4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const unsigned second = byte(1);
  const bool overlong =
      (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
  const bool surrogate = first == 0xED && second > 0x9F;
  const bool beyond = first == 0xF4 && second > 0x8F;
  return overlong || surrogate || beyond ? 0 : length;
}

}  // namespace

JsonReader::JsonReader(std::string_view text, const JsonSource& source)
    : text_(text), source_(source) {}

JsonReader::Position JsonReader::position() const {
  Position result{1, 1};
  for (const char c : text_.substr(0, at_)) {
    if (c == '\n') {
      ++result.line;
      result.column = 1;
    } else {
      ++result.column;
    }
  }
  return result;
}

std::string JsonReader::found() const {
  if (at_ >= text_.size()) return "the end";
  const auto c = static_cast<unsigned char>(text_[at_]);
  if (c > 0x20 && c < 0x7F) return message('\'', text_[at_], '\'');
  return message("byte ", static_cast<int>(c));
}

void JsonReader::refuse(std::string_view problem) const {
  const Position where = position();
  throw std::invalid_argument(
      message(source_.name, ':', where.line, ':', where.column, ": ", problem));
}

void JsonReader::fail(std::string_view expected) const {
  refuse(message("expected ", expected, ", found ", found()));
}

void JsonReader::fail_duplicate(std::string_view name) const {
  refuse(message("duplicate name \"", name, '"'));
}

void JsonReader::skip_space() {
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return;
    ++at_;
  }
}

bool JsonReader::take(char character) {
  if (at_ >= text_.size() || text_[at_] != character) return false;
  ++at_;
  return true;
}

void JsonReader::take_word(std::string_view word) {
  skip_space();
  if (text_.substr(at_, word.size()) != word) fail(word);
  at_ += word.size();
}

JsonKind JsonReader::peek() {
  skip_space();
  if (at_ >= text_.size()) fail("a value");
  switch (text_[at_]) {
    case '{': return JsonKind::kObject;
    case '[': return JsonKind::kArray;
    case '"': return JsonKind::kString;
    case 't':
    case 'f': return JsonKind::kBool;
    case 'n': return JsonKind::kNull;
    default: break;
  }
  if (text_[at_] != '-' && !is_digit(text_[at_])) fail("a value");
  return JsonKind::kNumber;
}

void JsonReader::read_null() { take_word("null"); }

bool JsonReader::read_bool() {
  skip_space();
  const bool value = at_ < text_.size() && text_[at_] == 't';
  take_word(value ? "true" : "false");
  return value;
}

void JsonReader::open(char bracket, std::string_view expected) {
  skip_space();
  if (at_ >= text_.size() || text_[at_] != bracket) fail(expected);
  if (static_cast<int64_t>(is_empty_.size()) >= source_.max_depth) {
    fail(message("at most ", source_.max_depth, " levels"));
  }
  ++at_;
  is_empty_.push_back(true);
}

bool JsonReader::advance(char closing) {
  skip_space();
  if (take(closing)) {
    is_empty_.pop_back();
    return false;
  }
  if (is_empty_.back()) {
    is_empty_.back() = false;
  } else if (!take(',')) {
    fail(message("',' or '", closing, '\''));
  }
  return true;
}

void JsonReader::begin_object() { open('{', "an object"); }

std::optional<std::string> JsonReader::next_name() {
  if (!advance('}')) return std::nullopt;
  std::string name = read_string();
  skip_space();
  if (!take(':')) fail("':'");
  return name;
}

void JsonReader::begin_array() { open('[', "an array"); }

bool JsonReader::next_element() { return advance(']'); }

void JsonReader::finish() {
  skip_space();
  if (at_ != text_.size()) fail("the end");
}

void JsonReader::take_digits() {
  if (at_ >= text_.size() || !is_digit(text_[at_])) fail("a digit");
  while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
}

std::variant<int64_t, double> JsonReader::read_number() {
  skip_space();
  const size_t start = at_;
  const bool negative = take('-');
  const size_t first_digit = at_;
  take_digits();
  if (text_[first_digit] == '0' && at_ - first_digit > 1) {
    at_ = first_digit + 1;
    fail("no digit after a leading zero");
  }
  bool is_integer = !(negative && text_.substr(first_digit, at_ - first_digit) == "0");
  if (take('.')) {
    is_integer = false;
    take_digits();
  }
  if (take('e') || take('E')) {
    is_integer = false;
    if (!take('+')) take('-');
    take_digits();
  }
  const char* const begin = text_.data() + start;
  const char* const end = text_.data() + at_;
  int64_t integer = 0;
  double real = 0;
  const auto result = is_integer ? std::from_chars(begin, end, integer)
                                 : std::from_chars(begin, end, real);
  if (result.ec != std::errc() || result.ptr != end) {
    at_ = start;
    fail(is_integer ? "an integer of 64 bits" : "a number that a double can hold");
  }
  if (is_integer) return integer;
  return real;
}

int64_t JsonReader::read_integer() {
  skip_space();
  const size_t start = at_;
  const auto number = read_number();
  if (!std::holds_alternative<int64_t>(number)) {
    at_ = start;
    fail("an integer");
  }
  return std::get<int64_t>(number);
}

unsigned JsonReader::take_hex4() {
  unsigned code = 0;
  for (int i = 0; i < 4; ++i) {
    const char* const digit = text_.data() + at_;
    unsigned value = 0;
    if (at_ >= text_.size() ||
        std::from_chars(digit, digit + 1, value, 16).ec != std::errc()) {
      fail("a hexadecimal digit");
    }
    code = code << 4 | value;
    ++at_;
  }
  return code;
}

void JsonReader::take_escape(std::string& out) {
  constexpr std::string_view kLetters = "\"\\/bfnrt";
  constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
  if (!take('u')) {
    const size_t index =
        at_ < text_.size() ? kLetters.find(text_[at_]) : std::string_view::npos;
    if (index == std::string_view::npos) fail("one of \"\\/bfnrtu after \\");
    ++at_;
    out.push_back(kMeanings[index]);
    return;
  }
  unsigned code = take_hex4();
  if (code >= 0xDC00 && code < 0xE000) fail("no low surrogate without a high one");
  if (code >= 0xD800 && code < 0xDC00) {
    if (!take('\\') || !take('u')) fail("a low surrogate");
    const unsigned low = take_hex4();
    if (low < 0xDC00 || low > 0xDFFF) fail("a low surrogate");
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }
  append_utf8(out, code);
}

void JsonReader::take_utf8(std::string& out) {
  const size_t length = utf8_length(text_.substr(at_));
  if (length == 0) fail("UTF-8");
  out.append(text_.substr(at_, length));
  at_ += length;
}

std::string JsonReader::read_string() {
  skip_space();
  if (!take('"')) fail("a string");
  std::string out;
  while (!take('"')) {
    if (at_ >= text_.size()) fail("'\"'");
    if (take('\\')) {
      take_escape(out);
    } else if (static_cast<unsigned char>(text_[at_]) < 0x20) {
      fail("no control character in a string");
    } else {
      take_utf8(out);
    }
  }
  return out;
}

}  // namespace torchtitan::base
