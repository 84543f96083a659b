#include "config/toml_document.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace torchtitan::config {
namespace {

template <class T>
const T& get(const TomlValue& value) {
  return std::get<T>(value.value);
}

std::string error_of(std::string_view text) {
  try {
    parse_toml(text, "run.toml");
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

void expect_at(const Position& position, int64_t line, int64_t column) {
  EXPECT_EQ(position.line, line);
  EXPECT_EQ(position.column, column);
}

TEST(TomlDocument, KeepsTheLineAndColumnOfEveryKeyAndValue) {
  const TomlTable document = parse_toml(
      "# comment\n"
      "[training]\n"
      "  steps = 10\n"
      "[quantize.linear]\n"
      "names = ['a', \"b\"]\n",
      "run.toml");
  ASSERT_EQ(document.size(), 2);
  EXPECT_EQ(document[0].key, "training");
  expect_at(document[0].position, 2, 2);

  const TomlEntry& steps = get<TomlTable>(document[0].value).at(0);
  EXPECT_EQ(steps.key, "steps");
  expect_at(steps.position, 3, 3);
  expect_at(steps.value.position, 3, 11);
  EXPECT_EQ(get<int64_t>(steps.value), 10);

  const TomlEntry& linear = get<TomlTable>(document[1].value).at(0);
  EXPECT_EQ(linear.key, "linear");
  const TomlEntry& names = get<TomlTable>(linear.value).at(0);
  const TomlArray& items = get<TomlArray>(names.value);
  ASSERT_EQ(items.size(), 2);
  EXPECT_EQ(get<std::string>(items[1]), "b");
  expect_at(items[1].position, 5, 15);
}

TEST(TomlDocument, KeepsTheTypesApart) {
  const TomlTable document = parse_toml(
      "boolean = true\n"
      "integer = -9223372036854775808\n"
      "float = 1.0\n"
      "nan = nan\n"
      "text = \"\"\n"
      "date = 2020-02-29\n"
      "empty = []\n"
      "table = {}\n",
      "run.toml");
  ASSERT_EQ(document.size(), 8);
  EXPECT_TRUE(get<bool>(document[0].value));
  EXPECT_EQ(get<int64_t>(document[1].value), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(get<double>(document[2].value), 1.0);
  EXPECT_TRUE(std::isnan(get<double>(document[3].value)));
  EXPECT_EQ(get<std::string>(document[4].value), "");
  EXPECT_EQ(get<DateTime>(document[5].value).text, "2020-02-29");
  EXPECT_TRUE(get<TomlArray>(document[6].value).empty());
  EXPECT_TRUE(get<TomlTable>(document[7].value).empty());
}

TEST(TomlDocument, GivesEntriesInTheOrderOfTheText) {
  const TomlTable document = parse_toml("b = 1\na = 2\nc.z = 3\nc.y = 4\n", "run.toml");
  ASSERT_EQ(document.size(), 3);
  EXPECT_EQ(document[0].key, "b");
  EXPECT_EQ(document[1].key, "a");
  const TomlTable& nested = get<TomlTable>(document[2].value);
  ASSERT_EQ(nested.size(), 2);
  EXPECT_EQ(nested[0].key, "z");
  expect_at(nested[0].position, 3, 3);
}

TEST(TomlDocument, CountsColumnsInCodePoints) {
  const TomlTable document =
      parse_toml("names = [\"\xc3\xa9t\xc3\xa9\", \"x\"]\n", "run.toml");
  expect_at(get<TomlArray>(document[0].value)[1].position, 1, 17);
}

TEST(TomlDocument, AcceptsWindowsLineEndsAndAnEmptyText) {
  EXPECT_TRUE(parse_toml("", "run.toml").empty());
  const TomlTable document = parse_toml("a = 1\r\nb = 2\r\n", "run.toml");
  expect_at(document.at(1).position, 2, 1);
}

TEST(TomlDocument, NamesFileLineAndColumnOfASyntaxError) {
  EXPECT_EQ(error_of("[training]\nsteps = \n").rfind("run.toml:2:", 0), 0);
  EXPECT_EQ(error_of("a = 'never closed\n").rfind("run.toml:1:", 0), 0);
  EXPECT_EQ(error_of("a = \"\xff\"\n").rfind("run.toml:1:", 0), 0);
  EXPECT_EQ(error_of("a = 9223372036854775808\n").rfind("run.toml:1:", 0), 0);
  EXPECT_NE(error_of("[training").find("run.toml:1:"), std::string::npos);
}

TEST(TomlDocument, RefusesAKeyOrTableGivenTwice) {
  const std::string key = error_of("[training]\nsteps = 1\nsteps = 2\n");
  EXPECT_EQ(key.rfind("run.toml:3:", 0), 0) << key;
  EXPECT_NE(key.find("steps"), std::string::npos) << key;
  const std::string table = error_of("[training]\n[model]\n[training]\n");
  EXPECT_EQ(table.rfind("run.toml:3:", 0), 0) << table;
  EXPECT_NE(table.find("training"), std::string::npos) << table;
}

TEST(TomlDocument, RefusesToNestWithoutEnd) {
  const std::string deep(100000, '[');
  EXPECT_EQ(error_of("a = " + deep).rfind("run.toml:1:", 0), 0);
}

TEST(TomlDocument, RefusesCharactersBeyondAsciiOutsideOfStringsAndComments) {
  const std::string reason =
      ": expected no character beyond ASCII outside of strings and comments";
  // U+045C (toml++ 3.3 has no defined answer), U+00A0 (a space, elsewhere), U+2028.
  EXPECT_EQ(error_of("x = 1\na.b\u045c = 2"), "run.toml:2:4" + reason);
  EXPECT_EQ(error_of("a =\u00a01"), "run.toml:1:4" + reason);
  EXPECT_EQ(error_of("a = '\u00e9' \u2028"), "run.toml:1:9" + reason);
  EXPECT_EQ(error_of("\xEF\xBB\xBF\u00e9 = 1"), "run.toml:1:1" + reason);
  EXPECT_EQ(error_of("a = \"\"\"\\\u00e9\"\"\""),
            "run.toml:1:9: expected an escape sequence");
  EXPECT_EQ(error_of("a = 1.'\u00e9'"), "run.toml:1:8" + reason);
  EXPECT_EQ(error_of("a = [{b = 2'\u00e9'}]"), "run.toml:1:13" + reason);
  EXPECT_NE(error_of("a = 'x\n\u00e9'").find("run.toml:1:"), std::string::npos);
}

TEST(TomlDocument, KeepsCharactersBeyondAsciiInStringsAndComments) {
  const TomlTable document = parse_toml(
      "\xEF\xBB\xBF# \u00e9\n"
      "\"\u00e9\" = '\u00a0'  # \u00a0\n"
      "b = \"\\\"\u00e9\"\n"
      "c = '''\u00e9''\u2028'''''\n"
      // Behind a line-ending backslash, where toml++ would drop the first one.
      "d = \"\"\"\\  \n \n\t\u00a0\U0001f600\"\"\"\"\"\n"
      "f.'\u00e9'.g = {h.'\u00e9' = '\u00e9', i = ['\u00e9', {}], '\u00e9' = 1}\n"
      "e = [\"\"\"x\\\n\u045c\"\"\", 1]\n",
      "run.toml");
  ASSERT_EQ(document.size(), 6);
  EXPECT_EQ(document[0].key, "\u00e9");
  EXPECT_EQ(get<std::string>(document[0].value), "\u00a0");
  EXPECT_EQ(get<std::string>(document[1].value), "\"\u00e9");
  EXPECT_EQ(get<std::string>(document[2].value), "\u00e9''\u2028''");
  EXPECT_EQ(get<std::string>(document[3].value), "\u00a0\U0001f600\"\"");
  EXPECT_EQ(get<std::string>(get<TomlArray>(document[5].value).at(0)), "x\u045c");
}

}  // namespace
}  // namespace torchtitan::config
