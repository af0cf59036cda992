#pragma once
#include <cstddef>
#include <cstdint>

namespace vitlet {

enum class Filter { bilinear, bicubic };

// What to compute. The source is resized, in the mind, to (resized_height, resized_width); of that
// picture only the window (top, left, out_height, out_width) is computed.
struct ResizeRequest {
  std::size_t height, width, channels;  // of the source; channels is 1, 3 or 4
  std::size_t resized_height, resized_width;
  std::size_t top, left, out_height, out_width;
  Filter filter;
};

// Limits that keep every index below inside 32 bits; the bindings check them.
inline constexpr std::size_t max_source_side = std::size_t{1} << 20;
inline constexpr std::size_t max_resized_side = (std::size_t{1} << 31) - 1;

// Weights are fixed-point numbers with this many fraction bits.
inline constexpr int weight_bits = 22;

// One axis: output i is sum_k weight(i, k) * source[first[i] + k], k < 4 * blocks.
// A weight w is stored as two int16, so that multiply-add instructions on 16-bit pairs can be used:
// w = high * 2^15 + low with 0 <= low < 2^15. A block is {high x 4, low x 4}.
// Weights past an output's last tap are zero; outputs past `count`, up to a multiple of four, are
// there with first = 0 and zero weights.
struct ResizeAxis {
  std::size_t count;            // outputs
  std::size_t blocks;           // of four taps, per output
  bool single;                  // every output is a copy of the one sample first[i]
  const std::int32_t* first;    // (count4,)
  const std::int16_t* weights;  // (count4, blocks, 2, 4)
};

// A request with its tables and scratch memory, all inside one workspace.
struct ResizePlan {
  ResizeRequest request;
  // Pillow 13 shrinks the height first if it loses more than twice as many pixels as the width
  // does. Older versions never do; a byte then differs by one here and there.
  bool vertical_first;
  ResizeAxis x, y;
  // The part of the source that the window needs. x.first and y.first count from its corner.
  std::size_t first_row, rows, first_column, columns;
  std::size_t plane;          // bytes from one channel of a resized row to the next
  std::size_t row_bytes;      // of a row of all channels, a multiple of 64
  std::size_t reach;          // bytes that the horizontal pass may read of a row
  unsigned char* middle;      // (rows or 4, middle_stride): what the first pass leaves
  std::size_t middle_stride;  // a multiple of 64
  unsigned char* lines;       // (4, row_bytes): output rows, channels apart
  unsigned char* padded;      // (4, reach): copies of source rows near the end of the image
  float* table;               // (channels, 256): the normalized value of each byte
};

// Bytes of workspace that `make_plan` needs, and so any function that takes a request.
// Source sides must be in [1, max_source_side], resized sides in [1, max_resized_side], and the
// window inside the resized picture and not empty.
std::size_t resize_normalize_workspace(const ResizeRequest& request);

// Fills the workspace (64-byte aligned) with the tables of `request`.
ResizePlan make_plan(const ResizeRequest& request, void* workspace);

}  // namespace vitlet
