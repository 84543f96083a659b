// TOML allows characters beyond ASCII in strings and comments only. toml++ 3 takes some
// of them elsewhere for spaces, and for others its behaviour is not defined; so they
// are looked for before it parses.
#pragma once

#include <string>
#include <string_view>

namespace torchtitan::config {

// The text for toml++: where a backslash that ends a line of a string is followed by a
// character beyond ASCII, that is an escape sequence now. Nothing else changes, nor
// does any line; what follows on the line of such a character has a larger column.
// Throws std::invalid_argument "source:line:column: .." at the first character beyond
// ASCII outside of strings and comments. A mark of UTF-8 at the start is none.
std::string with_safe_characters(std::string_view text, std::string_view source);

}  // namespace torchtitan::config
