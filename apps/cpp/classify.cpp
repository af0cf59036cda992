// Says what is on a picture, with a bundle that `vitlet export --to tvm` made:
//   classify BUNDLE PICTURE.ppm [THREADS]
// Prints the three likeliest labels and their probabilities. Needs no Python, no torch and no
// compiler: only libtvm_ffi and libtvm_runtime.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <numeric>

#include "graph.h"
#include "image.h"
#include "json.h"

namespace {

Json read_manifest(const std::string& bundle) {
  std::ifstream file(bundle + "/manifest.json", std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + bundle + "/manifest.json");
  return Json::parse({std::istreambuf_iterator<char>(file), {}});
}

// The TVM library for this kind of machine that takes pictures: (1, C, H, W) float32.
const Json& find_artifact(const Json& manifest) {
#ifdef __aarch64__
  const std::string triple = "aarch64-linux-gnu";
#else
  const std::string triple = "x86_64-linux-gnu";
#endif
  for (const Json& artifact : manifest["artifacts"].items) {
    if (artifact["target"].text != "tvm" || artifact["details"]["triple"].text != triple) continue;
    if (artifact["inputs"].items.at(0)["shape"].items.size() == 4) return artifact;
  }
  throw std::runtime_error("the bundle has no TVM library for " + triple);
}

// The processor may lack what the library was compiled for: better said than died of.
void check_processor(const Json& artifact) {
  std::ifstream file("/proc/cpuinfo");
  std::string line, has;
  while (has.empty() && std::getline(file, line))
    if (line.rfind("flags", 0) == 0 || line.rfind("Features", 0) == 0)
      has = line.substr(line.find(':') + 1) + " ";
  for (const Json& feature : artifact["details"]["cpu_features"].items)
    if (!has.empty() && has.find(" " + feature.text + " ") == std::string::npos)
      throw std::runtime_error(artifact["file"].text + " was compiled for " +
                               artifact["details"]["cpu"].text + " and uses " + feature.text +
                               ", which this processor does not have");
}

int classify(const std::string& bundle, const std::string& picture, int threads) {
  const Json manifest = read_manifest(bundle);
  const Json& artifact = find_artifact(manifest);
  check_processor(artifact);
  std::vector<int64_t> shape;
  for (const Json& size : artifact["inputs"].items.at(0)["shape"].items)
    shape.push_back(size.text.empty() ? static_cast<int64_t>(size.number) : 1);  // "batch"
  if (shape[0] != 1) throw std::runtime_error("the graph takes more than one picture at a time");
  Graph graph(bundle + "/" + artifact["file"].text, threads);
  std::vector<float> scores =
      graph.run(preprocess(read_image(picture), manifest["preprocess"]), shape);

  const float most = *std::max_element(scores.begin(), scores.end());
  float sum = 0;
  for (float& score : scores) sum += score = std::exp(score - most);
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  const std::vector<Json>& labels = manifest["labels"].items;
  for (std::size_t i = 0; i < std::min<std::size_t>(3, order.size()); ++i) {
    const std::size_t k = order[i];
    const std::string label = k < labels.size() ? labels[k].text : "class " + std::to_string(k);
    std::printf("%.6f %s\n", static_cast<double>(scores[k] / sum), label.c_str());
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3 && count != 4) {
    std::fprintf(stderr, "usage: %s BUNDLE PICTURE.ppm [THREADS]\n", arguments[0]);
    return 2;
  }
  try {
    const int threads = count == 4 ? std::atoi(arguments[3]) : 1;
    if (threads < 1) throw std::runtime_error("THREADS must be a number from 1");
    return classify(arguments[1], arguments[2], threads);
  } catch (const std::exception& error) {  // ffi::Error is one too
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
