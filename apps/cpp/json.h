#pragma once
#include <cctype>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

// As much JSON as a bundle's manifest needs. Numbers are doubles; \u escapes outside ASCII become
// '?'. Throws std::runtime_error on anything that is not JSON, and on a field that is not there.
struct Json {
  double number = 0;
  std::string text;
  std::vector<Json> items;
  std::map<std::string, Json> fields;

  const Json& operator[](const std::string& name) const {
    const auto found = fields.find(name);
    if (found == fields.end()) throw std::runtime_error("the manifest has no \"" + name + "\"");
    return found->second;
  }

  static Json parse(const std::string& source) {
    const char* at = source.c_str();
    Json value = any(at, 0);
    space(at);
    if (*at != '\0') fail();
    return value;
  }

 private:
  [[noreturn]] static void fail() { throw std::runtime_error("the manifest is not JSON"); }

  static void space(const char*& at) {
    while (std::isspace(static_cast<unsigned char>(*at))) ++at;
  }

  static bool take(const char*& at, char wanted) {
    space(at);
    if (*at != wanted) return false;
    ++at;
    return true;
  }

  static Json any(const char*& at, int depth) {
    if (depth > 64) fail();
    Json value;
    if (take(at, '{')) {
      for (bool more = !take(at, '}'); more; more = !take(at, '}')) {
        if (!value.fields.empty() && !take(at, ',')) fail();
        if (!take(at, '"')) fail();
        const std::string name = string(at);
        if (!take(at, ':')) fail();
        value.fields[name] = any(at, depth + 1);
      }
    } else if (take(at, '[')) {
      for (bool more = !take(at, ']'); more; more = !take(at, ']')) {
        if (!value.items.empty() && !take(at, ',')) fail();
        value.items.push_back(any(at, depth + 1));
      }
    } else if (take(at, '"')) {
      value.text = string(at);
    } else if (std::isalpha(static_cast<unsigned char>(*at))) {
      while (std::isalpha(static_cast<unsigned char>(*at))) value.text += *at++;
    } else {
      char* end = nullptr;
      value.number = std::strtod(at, &end);
      if (end == at) fail();
      at = end;
    }
    return value;
  }

  static std::string string(const char*& at) {
    std::string text;
    while (*at != '"') {
      if (*at == '\0') fail();
      if (*at != '\\') {
        text += *at++;
        continue;
      }
      const char kind = at[1];
      at += kind == '\0' ? 1 : 2;
      if (kind == 'u') {
        char digits[5] = {};
        for (int i = 0; i < 4; ++i) {
          if (!std::isxdigit(static_cast<unsigned char>(*at))) fail();
          digits[i] = *at++;
        }
        const long code = std::strtol(digits, nullptr, 16);
        text += code < 128 ? static_cast<char>(code) : '?';
      } else if (kind == 'n' || kind == 't' || kind == 'r' || kind == 'b' || kind == 'f') {
        text += ' ';
      } else {
        text += kind;
      }
    }
    ++at;
    return text;
  }
};
