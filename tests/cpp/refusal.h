// What a call that must refuse its arguments has to answer: a status and a sentence that names one
// of the arguments that are wrong.
#pragma once

#include <cctype>
#include <string>
#include <vector>

#include "check.h"
#include "minference/minference.h"

namespace minference::test {

/// One wrong argument.
struct Refusal {
  const char* what;
  std::vector<const char*> names;  // the sentence has one of these as a word
  Status status = Status::kInvalidArgument;
};

inline bool is_word_char(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

inline bool has_word(const std::string& sentence, const std::string& word) {
  for (std::size_t at = sentence.find(word); at != std::string::npos;
       at = sentence.find(word, at + 1)) {
    const std::size_t end = at + word.size();
    if ((at == 0 || !is_word_char(sentence[at - 1])) &&
        (end == sentence.size() || !is_word_char(sentence[end]))) {
      return true;
    }
  }
  return false;
}

inline void check_refusal(Status found, const Refusal& bad, const std::string& call) {
  CHECK(found == bad.status, "%s with %s: %s", call.c_str(), bad.what, status_string(found));
  if (found != bad.status) return;
  bool is_named = false;
  for (const char* name : bad.names) is_named = is_named || has_word(last_error(), name);
  CHECK(is_named, "%s with %s: no word of it in: %s", call.c_str(), bad.what, last_error());
}

/// Value `value` of an enum, whether or not it has that one.
template <class Enum>
Enum out_of_range(int value) {
  return static_cast<Enum>(value);
}

}  // namespace minference::test
