// Strict pull parser for JSON (RFC 8259). It builds no tree, so a hostile file costs no
// more memory than its own size; base/json.h builds values on top of it.
//
// Stricter than the standard: valid UTF-8 only, no lone surrogates, no byte order mark,
// nothing after the value, a limit of nesting. Integers are those written without
// fraction and exponent; "-0" is a floating-point number. Names of an object are handed
// out as they come: the caller refuses duplicates by fail_duplicate().
//
// Every error is std::invalid_argument "<source>:<line>:<column>: expected .., found
// ..".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace torchtitan::base {

struct JsonSource {
  std::string_view name;  // of the file or object, printed in errors
  int64_t max_depth;      // nested arrays and objects
};

enum class JsonKind { kNull, kBool, kNumber, kString, kArray, kObject };

// Borrows the text and the source's name.
class JsonReader {
 public:
  JsonReader(std::string_view text, const JsonSource& source);

  // What the next value is, without taking it.
  JsonKind peek();

  void read_null();
  bool read_bool();
  std::string read_string();
  std::variant<int64_t, double> read_number();
  int64_t read_integer();  // refuses 1.0, 1e3 and what int64 cannot hold

  //   reader.begin_object();
  //   while (const auto name = reader.next_name()) ... read one value ...
  void begin_object();
  std::optional<std::string> next_name();

  //   reader.begin_array();
  //   while (reader.next_element()) ... read one value ...
  void begin_array();
  bool next_element();

  // Throws unless only white space is left.
  void finish();

  [[noreturn]] void fail(std::string_view expected) const;
  [[noreturn]] void refuse(std::string_view problem) const;  // "<position>: <problem>"
  [[noreturn]] void fail_duplicate(std::string_view name) const;

 private:
  struct Position {
    int64_t line, column;
  };

  Position position() const;
  std::string found() const;
  void skip_space();
  bool take(char character);
  void take_word(std::string_view word);
  void open(char bracket, std::string_view expected);
  bool advance(char closing);
  void take_digits();
  unsigned take_hex4();
  void take_escape(std::string& out);
  void take_utf8(std::string& out);

  std::string_view text_;
  JsonSource source_;
  size_t at_ = 0;
  std::vector<bool> is_empty_;  // one per open array or object: nothing read yet
};

}  // namespace torchtitan::base
