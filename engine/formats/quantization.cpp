#include "formats/quantization.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "formats/linear.h"
#include "formats/pattern.h"

namespace stepladder {
namespace {

using Json = nlohmann::json;

/// How to go on where a checkpoint cannot be read; made up only where it is printed.
struct Requantize {
  friend std::ostream& operator<<(std::ostream& out, Requantize) {
    return out << "; quantize the 16-bit checkpoint instead: stepladder quantize IN OUT --format "
                  "FORMAT, where FORMAT is "
               << quantized_formats();
  }
};
constexpr Requantize kRequantize;

/// A string of a file as it may stand in a message: quoted, escaped and not endless.
std::string quoted(const std::string& text) {
  return Json(text.substr(0, 200)).dump(-1, ' ', true, Json::error_handler_t::replace);
}

/// A value of an object that may be absent or null.
const Json* get(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

/// Whether a setting says nothing: null, false, or empty through and through.
bool is_neutral(const Json& value) {
  if (value.is_structured())
    return std::all_of(value.begin(), value.end(), [](const Json& v) { return is_neutral(v); });
  return value.is_null() || value == false || value == "";
}

/// Typed reads of one JSON object, whose errors say where it stands.
struct Fields {
  const Json& object;
  std::string where;

  [[noreturn]] void wrong(const char* key, const char* wanted) const {
    fail(Code::model_format, where, ".", key, " is not ", wanted);
  }
  std::string text(const char* key, const std::string& otherwise) const {
    const Json* v = get(object, key);
    if (!v) return otherwise;
    if (!v->is_string()) wrong(key, "a string");
    return v->get<std::string>();
  }
  int integer(const char* key, int otherwise) const {
    const Json* v = get(object, key);
    if (!v) return otherwise;
    if (!v->is_number_integer() || std::abs(v->get<double>()) > 1e9) wrong(key, "an integer");
    return v->get<int>();
  }
  bool flag(const char* key, bool otherwise) const {
    const Json* v = get(object, key);
    if (!v) return otherwise;
    if (!v->is_boolean()) wrong(key, "true or false");
    return v->get<bool>();
  }
  /// Refuses every key that is not one of the words of `known` and says something.
  void only(std::initializer_list<std::string_view> known) const {
    if (!object.is_object()) return;
    for (const auto& [key, value] : object.items()) {
      bool found = false;
      for (const std::string_view words : known)
        found |= (" " + std::string(words) + " ").find(" " + key + " ") != std::string::npos;
      check(found || is_neutral(value), Code::unsupported, where, ".", quoted(key),
            " is not known, and may change what the weights mean; remove it if it does not",
            kRequantize);
    }
  }
};

// What these say either is read below or only tells how a checkpoint was made.
constexpr std::string_view kGptqRead =
    "quant_method bits group_size desc_act sym lm_head dynamic checkpoint_format "
    "modules_in_block_to_quantize";
constexpr std::string_view kGptqMade =
    "static_groups true_sequential damp_percent damp_auto_increment mse act_group_aware dataset "
    "tokenizer batch_size pad_token_id model_seqlen max_input_length block_name_to_quantize "
    "module_name_preceding_first_block cache_block_outputs model_name_or_path model_file_base_name "
    "meta pack_dtype backend use_cuda_fp16 use_exllama disable_exllama exllama_config method "
    "format v2 v2_alpha v2_memory_device quant_linear offload_to_disk offload_to_disk_path "
    "fail_safe failsafe vram_strategy auto_gc compile";
constexpr std::string_view kCompressed =
    "quant_method format quantization_status global_compression_ratio kv_cache_scheme ignore "
    "config_groups sparsity_config version run_compressed";
constexpr std::string_view kGroup = "targets weights input_activations output_activations format";
constexpr std::string_view kArgs =
    "num_bits type symmetric group_size strategy block_structure dynamic actorder observer "
    "observer_kwargs scale_dtype zp_dtype";

bool matches(const std::string& target, const std::string& prefix, const std::string& where) {
  if (!target.starts_with("re:")) return target == prefix;
  return matches_pattern(std::string_view(target).substr(3), prefix, where + ": " + quoted(target));
}

/// Whether a list of names and patterns names the layer; `by_class` lets "Linear" name it too.
bool lists(const Json* list, const std::string& prefix, const std::string& where, bool by_class) {
  if (!list) return false;
  check(list->is_array(), Code::model_format, where, " is not a list");
  // The embedding is not a Linear module, even where it serves as a tied head.
  const bool linear = !prefix.ends_with("embed_tokens");
  for (const Json& entry : *list) {
    check(entry.is_string(), Code::model_format, where, " holds something that is not a string");
    const auto& target = entry.get_ref<const std::string&>();
    if (matches(target, prefix, where)) return true;
    if (by_class && linear && target == "Linear") return true;
  }
  return false;
}

Storage read_gptq(const Checkpoint& c, const Fields& q, const std::string& prefix) {
  Storage s;
  q.only({kGptqRead, kGptqMade});
  if (prefix == "lm_head" ? !q.flag("lm_head", false) : prefix.ends_with("embed_tokens")) return s;
  if (const Json* dynamic = get(q.object, "dynamic"))
    check(dynamic->empty(), Code::unsupported, q.where,
          ".dynamic: settings per layer are not supported", kRequantize);
  if (get(q.object, "modules_in_block_to_quantize") && !c.find(prefix + ".qweight")) return s;
  s.method = Storage::Method::gptq;
  check(get(q.object, "bits"), Code::model_format, q.where, ".bits is missing");
  s.bits = q.integer("bits", 4);
  s.group = q.integer("group_size", -1);
  if (s.group == -1) s.group = 0;
  check(q.flag("sym", true), Code::unsupported, q.where,
        ": sym is false; asymmetric GPTQ is not supported", kRequantize);
  s.reordered = q.flag("desc_act", false);
  const std::string format = q.text("checkpoint_format", q.text("format", "gptq"));
  check(format == "gptq" || format == "gptq_v2", Code::unsupported, q.where, ".checkpoint_format ",
        quoted(format), " is not supported; gptq and gptq_v2 are");
  s.gptq_v2 = format == "gptq_v2";
  return s;
}

Storage read_group(const Fields& group, const std::string& format) {
  Storage s;
  s.method = Storage::Method::compressed;
  group.only({kGroup});
  const Json* weights = get(group.object, "weights");
  check(weights != nullptr, Code::unsupported, group.where,
        ": quantized activations over 16-bit weights are not supported");
  const Fields w{*weights, group.where + ".weights"};
  w.only({kArgs});
  s.packing = group.text("format", format);
  s.bits = w.integer("num_bits", 8);
  const std::string type = w.text("type", "int"), strategy = w.text("strategy", "tensor");
  s.integer = type == "int";
  check(w.flag("symmetric", true), Code::unsupported, w.where,
        ": symmetric is false; zero points are not supported", kRequantize);
  check(!w.flag("dynamic", false), Code::model_format, w.where,
        ": stored weights cannot be dynamic");
  if (strategy == "group" || strategy == "tensor_group") {
    s.group = w.integer("group_size", 0);
    check(s.group > 0, Code::model_format, w.where, ".group_size is not a positive integer");
  } else if (strategy == "tensor") {
    s.per_tensor = true;
  } else {
    check(strategy == "channel", Code::unsupported, w.where, ".strategy ", quoted(strategy),
          " is not supported", kRequantize);
  }
  // actorder: true in early files, later "group"; "weight" and "static" leave the order alone.
  if (const Json* order = get(w.object, "actorder"))
    s.reordered =
        order->is_boolean() ? order->get<bool>() : order->is_string() && *order == "group";

  if (const Json* input = get(group.object, "input_activations")) {
    const Fields a{*input, group.where + ".input_activations"};
    a.only({kArgs});
    const std::string a_type = a.text("type", "int"), a_strategy = a.text("strategy", "tensor");
    check(a.integer("num_bits", 8) == 8 && a_type == "int" && a_strategy == "token" &&
              a.flag("symmetric", true) && a.flag("dynamic", false),
          Code::unsupported, a.where,
          ": only int8, symmetric, dynamic, per token is supported, not ", quoted(a_type),
          a.integer("num_bits", 8), " per ", quoted(a_strategy),
          a.flag("dynamic", false) ? "" : ", static",
          a.flag("symmetric", true) ? "" : ", asymmetric", kRequantize);
    s.act = Act::a8;
  }
  check(!get(group.object, "output_activations"), Code::unsupported, group.where,
        ".output_activations: quantized outputs are not supported", kRequantize);
  return s;
}

Storage read_compressed(const Fields& q, const std::string& prefix) {
  q.only({kCompressed});
  if (const Json* sparsity = get(q.object, "sparsity_config")) {
    const std::string format =
        Fields{*sparsity, q.where + ".sparsity_config"}.text("format", "dense");
    check(format == "dense", Code::unsupported, q.where, ".sparsity_config.format ", quoted(format),
          " is not supported");
  }
  check(!get(q.object, "kv_cache_scheme"), Code::unsupported, q.where,
        ".kv_cache_scheme: a quantized cache is not supported; set it to null to keep the cache in "
        "16 bits");
  if (lists(get(q.object, "ignore"), prefix, q.where + ".ignore", true)) return {};
  const Json* groups = get(q.object, "config_groups");
  check(groups && groups->is_object() && !groups->empty(), Code::model_format, q.where,
        ".config_groups is missing or empty");
  const std::string format = q.text("format", "");
  for (const bool by_class : {false, true})  // a layer's own name goes before its class
    for (const auto& [name, group] : groups->items()) {
      const Fields fields{group, q.where + ".config_groups." + quoted(name)};
      check(group.is_object(), Code::model_format, fields.where, " is not an object");
      if (lists(get(group, "targets"), prefix, fields.where + ".targets", by_class))
        return read_group(fields, format);
    }
  return {};
}

}  // namespace

std::string Storage::describe() const {
  if (method == Method::none) return "plain numbers";
  std::string out =
      method == Method::gptq ? "GPTQ " : "compressed-tensors " + quoted(packing) + " ";
  out += (integer ? "int" : "float") + std::to_string(bits);
  out += per_tensor ? " with one scale"
         : group    ? " in groups of " + std::to_string(group)
                    : " per channel";
  return out + (act == Act::a8 ? ", int8 activations" : "");
}

namespace {

Storage read_storage(const Checkpoint& c, const std::string& prefix) {
  const Json* q = get(c.config(), "quantization_config");
  if (!q) return {};
  const Fields fields{*q, c.where() + ": config.json: quantization_config"};
  check(q->is_object(), Code::model_format, fields.where, " is not an object");
  const std::string method = fields.text("quant_method", "");
  if (method == "gptq") return read_gptq(c, fields, prefix);
  if (method == "compressed-tensors") return read_compressed(fields, prefix);
  std::string found;
  if (c.find(prefix + ".qzeros") && c.find(prefix + ".g_idx"))
    found = " (the tensors look like GPTQ)";
  if (c.find(prefix + ".weight_packed")) found = " (the tensors look like compressed-tensors)";
  fail(Code::unsupported, fields.where, ": quant_method ", quoted(method), " is not supported",
       found, "; gptq and compressed-tensors are", kRequantize);
}

}  // namespace

Storage storage_of(const Checkpoint& c, const std::string& prefix) {
  try {
    return read_storage(c, prefix);
  } catch (const Error& e) {
    if (e.code() != Code::unsupported) throw;
    Storage out;
    out.method = Storage::Method::other;
    out.refusal = e.what();
    return out;
  }
}

std::ostream& operator<<(std::ostream& out, const TensorPlace& place) {
  const TensorInfo* info = place.checkpoint.find(place.name);
  return out << (info && !info->file.empty() ? info->file : place.checkpoint.where()) << ": tensor "
             << place.name;
}

void check_absent(const Checkpoint& c, const std::string& prefix,
                  std::span<const char* const> suffixes, const Storage& storage) {
  for (const char* suffix : suffixes) {
    const std::string name = prefix + "." + suffix;
    check(!c.find(name), Code::model_format, tensor_place(c, name),
          " does not belong to a layer stored as ", storage.describe(),
          ", which is what quantization_config in config.json says",
          storage.method == Storage::Method::none
              ? "; if the quantizer wrote its settings to another file, add them to config.json as "
                "quantization_config"
              : "");
  }
}

void check_scales(const Checkpoint& c, const std::string& name, size_t first,
                  std::span<const float> scales, bool negative, float largest_code) {
  const float most = FLT_MAX / largest_code;
  bool all = true;  // by a loop that vectorizes
  for (const float x : scales)
    all &= (std::fabs(x) > 0) & (std::fabs(x) <= most) & (negative | (x > 0));
  if (all) return;
  for (size_t i = 0; i < scales.size(); ++i) {
    check(std::isfinite(scales[i]) && scales[i] != 0 && (negative || scales[i] > 0),
          Code::model_format, tensor_place(c, name), ": scale ", first + i, " is ", scales[i],
          "; scales must be finite and ", negative ? "not zero" : "positive",
          "; the file is damaged or was badly quantized");
    check(std::fabs(scales[i]) <= most, Code::model_format, tensor_place(c, name), ": scale ",
          first + i, " is ", scales[i],
          ", which makes weights that no float can hold of codes up to ", largest_code,
          "; the file is damaged or was badly quantized");
  }
}

void check_group(const Checkpoint& c, const std::string& prefix, int k, int group) {
  check(group > 0 && k % group == 0, Code::unsupported, c.where(), ": ", prefix, ": groups of ",
        group, " do not divide its width of ", k);
}

DType float_type(const TensorInfo& info) {
  return info.dtype == "BF16" ? DType::bf16 : info.dtype == "F16" ? DType::f16 : DType::f32;
}

const float* read_floats(const Checkpoint& c, const std::string& name, const Slice& elements,
                         Scratch& stored, Scratch& values) {
  const DType type = float_type(c.need(name));
  const size_t each = bits(type) / 8, count = elements.bytes * elements.runs;
  const Slice slice{elements.offset * each, elements.bytes * each, elements.runs,
                    elements.stride * each};
  std::byte* const raw = stored.take<std::byte>(count * each);
  c.read_slice(name, slice, {raw, count * each});
  if (type == DType::f32) return reinterpret_cast<const float*>(raw);
  const auto* const codes = reinterpret_cast<const uint16_t*>(raw);
  float* const out = values.take<float>(count);
  if (type == DType::bf16)
    for (size_t i = 0; i < count; ++i) out[i] = from_bf16(codes[i]);
  else
    for (size_t i = 0; i < count; ++i) out[i] = from_f16(codes[i]);
  return out;
}

void check_trivial_order(const Checkpoint& c, const std::string& name, int k, int group,
                         bool required) {
  if (!c.find(name)) {
    check(!required, Code::model_format, c.where(), ": there is no tensor ", name,
          ", which a checkpoint quantized in activation order needs");
    return;
  }
  const int64_t shape[] = {k};
  const auto index = c.load<int32_t>(name, "I32", shape);
  if (std::all_of(index.begin(), index.end(), [](int32_t g) { return g == -1; })) return;
  for (int i = 0; i < k; ++i)
    check(index[i] >= 0 && index[i] < k / group, Code::model_format, tensor_place(c, name),
          ": entry ", i, " is ", index[i], ", but there are ", k / group, " groups");
  for (int i = 0; i < k; ++i)
    check(index[i] == i / group, Code::unsupported, tensor_place(c, name),
          ": columns were reordered by activation (desc_act without static_groups); quantize with "
          "static_groups=True or desc_act=False");
}

void check_compressed_companions(const Checkpoint& c, const std::string& prefix, int n, int k) {
  const std::string shape_name = prefix + ".weight_shape";
  if (c.find(shape_name)) {
    const int64_t two[] = {2};
    const auto shape = c.load<int64_t>(shape_name, "I64", two);
    check(shape[0] == n && shape[1] == k, Code::model_format, tensor_place(c, shape_name),
          " says [", shape[0], ", ", shape[1], "], but config.json makes it [", n, ", ", k, "]");
  }
  const std::string zero_name = prefix + ".weight_zero_point";
  if (const TensorInfo* info = c.find(zero_name)) {
    std::vector<std::byte> bytes(info->bytes);
    c.read(zero_name, bytes);
    check(std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; }),
          Code::unsupported, tensor_place(c, zero_name),
          " is not zero: asymmetric codes are not supported", kRequantize);
  }
}

}  // namespace stepladder
