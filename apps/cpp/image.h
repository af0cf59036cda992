#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.h"
#include "resize_normalize.h"

// An 8-bit picture, rows of pixels of 1 (grey) or 3 (RGB) bytes.
struct Image {
  std::size_t width = 0, height = 0, channels = 0;
  std::vector<std::uint8_t> bytes;
};

// Reads a binary PGM (P5) or PPM (P6) file; most tools write them (`convert photo.jpg photo.ppm`).
inline Image read_image(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::string kind;
  file >> kind;
  std::size_t sizes[3] = {};
  for (std::size_t& size : sizes) {
    while ((file >> std::ws).peek() == '#')
      file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    file >> size;
  }
  file.get();
  constexpr std::size_t most = 65535;
  if ((kind != "P5" && kind != "P6") || !file || sizes[2] != 255 || sizes[0] < 1 || sizes[1] < 1 ||
      sizes[0] > most || sizes[1] > most)
    throw std::runtime_error(path + " is not a binary PGM or PPM file of 8 bits");
  Image image{sizes[0], sizes[1], kind == "P5" ? std::size_t{1} : std::size_t{3}, {}};
  image.bytes.resize(image.width * image.height * image.channels);
  file.read(reinterpret_cast<char*>(image.bytes.data()),
            static_cast<std::streamsize>(image.bytes.size()));
  if (!file) throw std::runtime_error(path + " ends before its last pixel");
  return image;
}

// The same picture with as many channels as the model takes: grey by Pillow's weights.
inline Image with_channels(const Image& image, std::size_t channels) {
  if (image.channels == channels) return image;
  Image other{image.width, image.height, channels, {}};
  for (std::size_t i = 0; i < image.width * image.height; ++i) {
    const std::uint8_t* p = image.bytes.data() + i * image.channels;
    if (channels == 3)
      other.bytes.insert(other.bytes.end(), 3, p[0]);
    else
      other.bytes.push_back(
          static_cast<std::uint8_t>((p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 0x8000) >> 16));
  }
  return other;
}

// Resizes, cuts and normalizes as the manifest's "preprocess" says: (C, H, W) float32.
inline std::vector<float> preprocess(const Image& picture, const Json& spec) {
  const bool grey = spec["mode"].text == "L";
  const Image image = with_channels(picture, grey ? 1 : 3);
  const double tall = spec["size"].items.at(0).number, wide = spec["size"].items.at(1).number;
  double rows = tall, columns = wide;
  if (spec["resize"].text == "shortest") {
    const double shorter = spec["resize_to"].number;
    const std::size_t longest = std::max(image.width, image.height);
    const double longer = std::floor(shorter * static_cast<double>(longest) /
                                     static_cast<double>(std::min(image.width, image.height)));
    rows = image.height <= image.width ? shorter : longer;
    columns = image.height <= image.width ? longer : shorter;
  }
  const auto whole = [](double value) { return static_cast<std::size_t>(value); };
  const vitlet::ResizeRequest request{image.height,
                                      image.width,
                                      image.channels,
                                      whole(rows),
                                      whole(columns),
                                      whole(std::nearbyint((rows - tall) / 2)),
                                      whole(std::nearbyint((columns - wide) / 2)),
                                      whole(tall),
                                      whole(wide),
                                      spec["interpolation"].text == "bilinear"
                                          ? vitlet::Filter::bilinear
                                          : vitlet::Filter::bicubic};
  std::vector<float> mean, std, out(image.channels * whole(tall) * whole(wide));
  for (std::size_t c = 0; c < image.channels; ++c) {
    mean.push_back(static_cast<float>(spec["mean"].items.at(c).number));
    std.push_back(static_cast<float>(spec["std"].items.at(c).number));
  }
  std::vector<std::uint8_t> room(vitlet::resize_normalize_workspace(request) + 64);
  void* workspace = room.data();
  std::size_t size = room.size();
  std::align(64, size - 64, workspace, size);
  vitlet::reference::resize_normalize(image.bytes.data(), request, mean.data(), std.data(),
                                      out.data(), workspace);
  return out;
}
