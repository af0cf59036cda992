"""The texts of the folder `xctest`: a Swift package, its test, and what the test proves.

`PACKAGE` and `README` are formats; `TEST` is written as it is.
"""

from __future__ import annotations

PACKAGE = """// swift-tools-version:5.7
import PackageDescription

let package = Package(
    name: "GoldenTests",
    platforms: [.iOS("{ios}.0"), .macOS("{macos}.0")],
    targets: [
        .testTarget(name: "GoldenTests", resources: [.copy("Golden")])
    ]
)
"""

TEST = """// Runs the Core ML programs of this bundle on golden inputs, on each kind of processor,
// and compares what they give with the source model's answers. See README.md.
import CoreML
import CoreVideo
import XCTest

struct Golden: Decodable {
    struct Limit: Decodable { let cosine: Double, relative: Double }
    struct Case: Decodable {
        let program, name, input, kind, inputFile, output, outputFile: String
        let shape: [Int], labels: [String]
    }
    let tolerance: [String: Limit], cases: [Case]
}

final class GoldenTests: XCTestCase {
    func testCPU() async throws { try await check(.cpuOnly, "CPU") }
    func testCPUAndGPU() async throws { try await check(.cpuAndGPU, "CPU and GPU") }
    func testNeuralEngine() async throws { try await check(.cpuAndNeuralEngine, "Neural Engine") }
    func testAll() async throws { try await check(.all, "all") }

    private func folder() throws -> URL {
        try XCTUnwrap(Bundle.module.url(forResource: "Golden", withExtension: nil))
    }

    /// A program copied into Golden (for a phone), or the bundle's own (on a Mac).
    private func program(_ name: String) throws -> URL {
        let copied = try folder().appendingPathComponent(name)
        if FileManager.default.fileExists(atPath: copied.path) { return copied }
        var bundle = URL(fileURLWithPath: #filePath)
        for _ in 0..<4 { bundle.deleteLastPathComponent() }
        return bundle.appendingPathComponent(name)
    }

    private func check(_ units: MLComputeUnits, _ title: String) async throws {
        let data = try Data(contentsOf: folder().appendingPathComponent("golden.json"))
        let golden = try JSONDecoder().decode(Golden.self, from: data)
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        for (name, limit) in golden.tolerance.sorted(by: { $0.key < $1.key }) {
            let compiled = try await MLModel.compileModel(at: program(name))
            let model = try MLModel(contentsOf: compiled, configuration: configuration)
            for item in golden.cases where item.program == name {
                let actual = try run(model, item)
                let expected: [Float] = try read(item.outputFile)
                let (cosine, relative) = compare(expected, actual)
                let line = "\\(title), \\(name), \\(item.name): cosine \\(cosine), off \\(relative)"
                print(line)
                XCTAssertEqual(actual.count, expected.count, line)
                XCTAssertGreaterThanOrEqual(cosine, limit.cosine, line)
                XCTAssertLessThanOrEqual(relative, limit.relative, line)
            }
        }
    }

    private func run(_ model: MLModel, _ item: Golden.Case) throws -> [Float] {
        let given = try MLDictionaryFeatureProvider(dictionary: [item.input: value(item)])
        return try numbers(model.prediction(from: given), item)
    }

    /// The numbers of a golden file, little endian as on every Apple device.
    private func read<T>(_ file: String) throws -> [T] {
        let data = try Data(contentsOf: folder().appendingPathComponent(file))
        let size = MemoryLayout<T>.size
        return data.withUnsafeBytes { bytes in
            stride(from: 0, to: bytes.count, by: size).map {
                bytes.loadUnaligned(fromByteOffset: $0, as: T.self)
            }
        }
    }

    private func value(_ item: Golden.Case) throws -> MLFeatureValue {
        if item.kind == "uint8" {
            let pixels: [UInt8] = try read(item.inputFile)
            return MLFeatureValue(pixelBuffer: try picture(pixels, item.shape))
        }
        let isFloat = item.kind == "float32"
        let shape = item.shape.map { NSNumber(value: $0) }
        let array = try MLMultiArray(shape: shape, dataType: isFloat ? .float32 : .int32)
        if isFloat {
            let values: [Float] = try read(item.inputFile)
            for (index, value) in values.enumerated() { array[index] = NSNumber(value: value) }
        } else {
            let values: [Int32] = try read(item.inputFile)
            for (index, value) in values.enumerated() { array[index] = NSNumber(value: value) }
        }
        return MLFeatureValue(multiArray: array)
    }

    /// A pixel buffer of grey or RGB rows (height, width, channels).
    private func picture(_ pixels: [UInt8], _ shape: [Int]) throws -> CVPixelBuffer {
        let (height, width, channels) = (shape[0], shape[1], shape[2])
        let format = channels == 1 ? kCVPixelFormatType_OneComponent8 : kCVPixelFormatType_32BGRA
        var made: CVPixelBuffer?
        CVPixelBufferCreate(kCFAllocatorDefault, width, height, format, nil, &made)
        let buffer = try XCTUnwrap(made)
        CVPixelBufferLockBaseAddress(buffer, [])
        defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
        let start = try XCTUnwrap(CVPixelBufferGetBaseAddress(buffer))
        let bytes = start.assumingMemoryBound(to: UInt8.self)
        for y in 0..<height {
            let row = bytes + y * CVPixelBufferGetBytesPerRow(buffer)
            for x in 0..<width {
                let from = (y * width + x) * channels
                if channels == 1 {
                    row[x] = pixels[from]
                } else {
                    for c in 0..<3 { row[4 * x + c] = pixels[from + 2 - c] }
                    row[4 * x + 3] = 255
                }
            }
        }
        return buffer
    }

    private func numbers(_ result: MLFeatureProvider, _ item: Golden.Case) throws -> [Float] {
        let value = try XCTUnwrap(result.featureValue(for: item.output))
        if item.labels.isEmpty {
            let array = try XCTUnwrap(value.multiArrayValue)
            return (0..<array.count).map { element(array, $0) }
        }
        return item.labels.map { value.dictionaryValue[$0]?.floatValue ?? .nan }
    }

    /// The element of a place in C order, whatever the array's strides are.
    private func element(_ array: MLMultiArray, _ place: Int) -> Float {
        var rest = place
        var index = [NSNumber](repeating: 0, count: array.shape.count)
        for axis in array.shape.indices.reversed() {
            let size = array.shape[axis].intValue
            index[axis] = NSNumber(value: rest % size)
            rest /= size
        }
        return array[index].floatValue
    }

    private func compare(_ expected: [Float], _ actual: [Float]) -> (Double, Double) {
        var dot = 0.0, a = 0.0, b = 0.0, error = 0.0, largest = 0.0
        for (wanted, got) in zip(expected, actual) {
            let x = Double(wanted), y = Double(got)
            dot += x * y
            a += x * x
            b += y * y
            error = y.isNaN ? .infinity : max(error, abs(x - y))
            largest = max(largest, abs(x))
        }
        return (dot / max((a * b).squareRoot(), 1e-30), error / max(largest, 1e-30))
    }
}
"""

README = """# Finish the proof on an Apple device

This Swift package runs {programs} on golden inputs and compares with the source model's answers,
within the limits in `Tests/GoldenTests/Golden/golden.json`. Work in a copy of the bundle: building
leaves files in it, and a changed bundle is refused. On a Mac:

    cp -R NAME.vitlet checking && cd checking/xctest && swift test

On an iPhone: copy {programs} into `Tests/GoldenTests/Golden`, open `Package.swift` in Xcode, choose
the phone, and run the tests.

Each test asks Core ML for one kind of processor (CPU; CPU and GPU; CPU and Neural Engine; all) and
prints cosine and error of each input. Limits of what it shows:

- Core ML may still choose another processor for some operations; Xcode's performance report says
  which one ran. Without a Neural Engine that test runs on the CPU.
- It holds for this device and system. Other chips may compute other last digits.
- A simulator will not do: it has neither the phone's GPU nor its Neural Engine.
- Accuracy on your data, speed and energy are not measured.

Before this test, the programs were checked without Apple hardware: there, the arithmetic of a GPU
and of the Neural Engine is not simulated.
"""
