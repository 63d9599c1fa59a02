#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "autodeploy/autodeploy.h"

extern "C" int64_t c_max_seq_len(const char* artifact_dir);
extern "C" size_t c_sizeof_options(void);
extern "C" size_t c_sizeof_params(void);
extern "C" size_t c_sizeof_output(void);

namespace {

const std::string kArtifact = std::string(AUTODEPLOY_TEST_DATA) + "/golden/tiny";
const std::vector<int64_t> kPrompt = {3, 14, 15, 9, 26, 5};  // of expected.json beside it
constexpr int64_t kNext = 28;                                // where its logits are largest

class CApi : public testing::Test {
 protected:
  void SetUp() override {
    autodeploy_engine_options options;
    autodeploy_engine_options_init(&options, sizeof(options));
    options.num_threads = 1;
    options.max_num_seqs = 3;
    options.exact = 1;
    ASSERT_EQ(autodeploy_engine_create(kArtifact.c_str(), &options, &engine_), AUTODEPLOY_OK)
        << autodeploy_last_error();
  }
  void TearDown() override { autodeploy_engine_destroy(engine_); }

  autodeploy_request_params greedy(int64_t max_tokens) {
    autodeploy_request_params params;
    autodeploy_request_params_init(&params, sizeof(params));
    params.max_tokens = max_tokens;
    params.temperature = 0;
    return params;
  }
  int64_t add(const std::vector<int64_t>& prompt, const autodeploy_request_params& params) {
    int64_t id = 0;
    EXPECT_EQ(autodeploy_engine_add_request(engine_, prompt.data(), prompt.size(), &params, &id),
              AUTODEPLOY_OK)
        << autodeploy_last_error();
    return id;
  }
  struct Result {
    std::vector<int64_t> tokens;
    int32_t reason = AUTODEPLOY_FINISH_NONE;
    int64_t stop = -1;
  };
  Result finish(int64_t id) {
    Result result;
    for (int i = 0; i < 1000 && result.reason == AUTODEPLOY_FINISH_NONE; ++i) {
      autodeploy_outputs* outputs = nullptr;
      EXPECT_EQ(autodeploy_engine_wait(engine_, 10.0, &outputs), AUTODEPLOY_OK) << autodeploy_last_error();
      for (size_t k = 0; k < autodeploy_outputs_size(outputs); ++k) {
        const autodeploy_output* o = autodeploy_outputs_get(outputs, k);
        EXPECT_EQ(o->request_id, id);
        result.tokens.insert(result.tokens.end(), o->token_ids, o->token_ids + o->num_tokens);
        result.reason = o->finish_reason;
        result.stop = o->stop_token_id;
      }
      EXPECT_EQ(autodeploy_outputs_get(outputs, 1000), nullptr);
      autodeploy_outputs_free(outputs);
    }
    return result;
  }
  std::string refused(const std::vector<int64_t>& prompt, const autodeploy_request_params& params,
                      autodeploy_status expected = AUTODEPLOY_INVALID_ARGUMENT) {
    int64_t id = -7;
    EXPECT_EQ(autodeploy_engine_add_request(engine_, prompt.data(), prompt.size(), &params, &id), expected);
    EXPECT_EQ(id, -7);
    return autodeploy_last_error();
  }

  autodeploy_engine* engine_ = nullptr;
};

TEST_F(CApi, VersionsAndNames) {
  EXPECT_EQ(autodeploy_api_version(), 1000 * AUTODEPLOY_API_VERSION_MAJOR + AUTODEPLOY_API_VERSION_MINOR);
  EXPECT_EQ(std::string(autodeploy_version()).find_first_not_of("0123456789."), std::string::npos);
  for (int s = AUTODEPLOY_OK; s <= AUTODEPLOY_INTERNAL; ++s) {
    EXPECT_STRNE(autodeploy_status_name(static_cast<autodeploy_status>(s)), "unknown") << s;
  }
}

// Fields are only ever added at the end: the sizes of version 1.0 on 64-bit machines are the least that may
// be seen.
TEST_F(CApi, LayoutsAreTheSameInCAndNeverShrink) {
  EXPECT_EQ(c_sizeof_options(), sizeof(autodeploy_engine_options));
  EXPECT_EQ(c_sizeof_params(), sizeof(autodeploy_request_params));
  EXPECT_EQ(c_sizeof_output(), sizeof(autodeploy_output));
  EXPECT_GE(sizeof(autodeploy_engine_options), 72U);
  EXPECT_EQ(offsetof(autodeploy_engine_options, progress_user_data), 64U);
  EXPECT_GE(sizeof(autodeploy_request_params), 160U);
  EXPECT_EQ(offsetof(autodeploy_request_params, num_eos_token_ids), 152U);
  EXPECT_EQ(offsetof(autodeploy_output, error), 48U);
  EXPECT_EQ(c_max_seq_len(kArtifact.c_str()), 64);
}

TEST_F(CApi, GeneratesWhatTheModelSays) {
  const Result result = finish(add(kPrompt, greedy(5)));
  ASSERT_EQ(result.tokens.size(), 5U);
  EXPECT_EQ(result.tokens[0], kNext);
  EXPECT_EQ(result.reason, AUTODEPLOY_FINISH_LENGTH);
  EXPECT_EQ(result.stop, -1);
}

TEST_F(CApi, StopsBiasAndSeeds) {
  autodeploy_request_params params = greedy(5);
  params.stop_token_ids = &kNext;
  params.num_stop_token_ids = 1;
  Result result = finish(add(kPrompt, params));
  EXPECT_EQ(result.tokens, std::vector<int64_t>{kNext});
  EXPECT_EQ(result.reason, AUTODEPLOY_FINISH_STOP);
  EXPECT_EQ(result.stop, kNext);

  params = greedy(2);
  const int64_t token = 11;
  const double bias = 100;
  params.logit_bias_token_ids = &token;
  params.logit_bias_values = &bias;
  params.num_logit_bias = 1;
  EXPECT_EQ(finish(add(kPrompt, params)).tokens, (std::vector<int64_t>{11, 11}));

  params = greedy(12);
  params.temperature = 20;
  params.has_seed = 1;
  params.seed = 7;
  const Result first = finish(add(kPrompt, params)), again = finish(add(kPrompt, params));
  EXPECT_EQ(first.tokens, again.tokens);
  params.seed = 8;
  EXPECT_NE(finish(add(kPrompt, params)).tokens, first.tokens);
}

TEST_F(CApi, LogprobsComeWhereAskedFor) {
  autodeploy_request_params params = greedy(1);
  params.logprobs = 3;
  add(kPrompt, params);
  autodeploy_outputs* outputs = nullptr;
  ASSERT_EQ(autodeploy_engine_wait(engine_, 10.0, &outputs), AUTODEPLOY_OK);
  ASSERT_EQ(autodeploy_outputs_size(outputs), 1U);
  const autodeploy_output* o = autodeploy_outputs_get(outputs, 0);
  ASSERT_NE(o->logprobs, nullptr);
  EXPECT_EQ(o->logprobs[0].chosen.token_id, kNext);
  EXPECT_EQ(o->logprobs[0].rank, 1);
  ASSERT_EQ(o->logprobs[0].num_top, 3);
  EXPECT_EQ(o->logprobs[0].top[0].token_id, kNext);
  EXPECT_EQ(o->logprobs[0].top[1].token_id, 8);
  EXPECT_GT(o->logprobs[0].top[0].logprob, o->logprobs[0].top[1].logprob);
  autodeploy_outputs_free(outputs);
}

TEST_F(CApi, BadRequestsNameTheField) {
  EXPECT_NE(refused({}, greedy(5)).find("prompt"), std::string::npos);
  EXPECT_NE(refused({40}, greedy(5)).find("found 40"), std::string::npos);
  EXPECT_NE(refused(kPrompt, greedy(59)).find("max_tokens"), std::string::npos);
  autodeploy_request_params params = greedy(5);
  params.min_p = 7;
  EXPECT_NE(refused(kPrompt, params).find("min_p: expected a value in [0, 1], found 7"), std::string::npos);
  params = greedy(5);
  params.num_stop_token_ids = 3;
  EXPECT_NE(refused(kPrompt, params).find("stop_token_ids"), std::string::npos);
  EXPECT_EQ(finish(add(kPrompt, greedy(1))).tokens[0], kNext);
}

TEST_F(CApi, StructsOfOtherVersions) {
  autodeploy_request_params params = greedy(2);
  params.struct_size = 0;
  EXPECT_NE(refused(kPrompt, params).find("struct_size"), std::string::npos);
  // An older caller, who knew max_tokens and temperature: the rest is at its default whatever lies behind.
  params = greedy(2);
  params.top_p = 99;
  params.struct_size = offsetof(autodeploy_request_params, top_k);
  EXPECT_EQ(finish(add(kPrompt, params)).tokens.size(), 2U);
  // A newer caller: fields unknown here must be unused.
  struct Newer {
    autodeploy_request_params known;
    int64_t more[2];
  } newer{greedy(2), {0, 0}};
  newer.known.struct_size = sizeof(newer);
  EXPECT_EQ(finish(add(kPrompt, newer.known)).tokens.size(), 2U);
  newer.more[1] = 1;
  EXPECT_NE(refused(kPrompt, newer.known, AUTODEPLOY_UNSUPPORTED).find("newer library"), std::string::npos);
  // The init functions write no further than they are told.
  unsigned char bytes[64];
  std::memset(bytes, 0xab, sizeof(bytes));
  autodeploy_engine_options_init(reinterpret_cast<autodeploy_engine_options*>(bytes), 24);
  EXPECT_EQ(bytes[23], 0);
  EXPECT_EQ(bytes[24], 0xab);
}

TEST_F(CApi, NullPointersAreErrors) {
  int64_t id = 0;
  EXPECT_EQ(autodeploy_engine_create(nullptr, nullptr, nullptr), AUTODEPLOY_INVALID_ARGUMENT);
  EXPECT_EQ(autodeploy_engine_add_request(nullptr, kPrompt.data(), 1, nullptr, &id),
            AUTODEPLOY_INVALID_ARGUMENT);
  EXPECT_EQ(autodeploy_engine_add_request(engine_, nullptr, 5, nullptr, &id), AUTODEPLOY_INVALID_ARGUMENT);
  EXPECT_EQ(autodeploy_engine_add_request(engine_, kPrompt.data(), 1, nullptr, nullptr),
            AUTODEPLOY_INVALID_ARGUMENT);
  EXPECT_EQ(autodeploy_engine_wait(engine_, 0, nullptr), AUTODEPLOY_INVALID_ARGUMENT);
  EXPECT_EQ(autodeploy_engine_plan(nullptr, nullptr), AUTODEPLOY_INVALID_ARGUMENT);
  EXPECT_NE(std::string(autodeploy_last_error()), "");
  autodeploy_engine_destroy(nullptr);
  autodeploy_outputs_free(nullptr);
  autodeploy_string_free(nullptr);
  EXPECT_EQ(autodeploy_outputs_size(nullptr), 0U);
}

TEST_F(CApi, ErrorsBelongToTheirThread) {
  refused({}, greedy(5));
  const std::string here = autodeploy_last_error();
  std::string fresh, there;
  std::thread other([&] {
    fresh = autodeploy_last_error();
    refused({41}, greedy(5));
    there = autodeploy_last_error();
  });
  other.join();
  EXPECT_EQ(fresh, "");
  EXPECT_NE(there, here);
  EXPECT_EQ(here, autodeploy_last_error());
}

TEST_F(CApi, OpeningFailsClearly) {
  autodeploy_engine* engine = engine_;
  EXPECT_EQ(autodeploy_engine_create("/no/such/artifact", nullptr, &engine), AUTODEPLOY_IO);
  EXPECT_EQ(engine, nullptr);
  EXPECT_NE(std::string(autodeploy_last_error()).find("/no/such/artifact"), std::string::npos)
      << autodeploy_last_error();
  autodeploy_engine_options options;
  autodeploy_engine_options_init(&options, sizeof(options));
  options.max_seq_len = 65;
  EXPECT_EQ(autodeploy_engine_create(kArtifact.c_str(), &options, &engine), AUTODEPLOY_INVALID_ARGUMENT);
  options.max_seq_len = 64;
  options.cache_bytes = 10;
  EXPECT_EQ(autodeploy_engine_create(kArtifact.c_str(), &options, &engine), AUTODEPLOY_OUT_OF_MEMORY);
  options.cache_bytes = 0;
  int calls = 0;
  options.progress_user_data = &calls;
  options.progress = [](int64_t done, int64_t total, void* data) {
    EXPECT_LE(done, total);
    return ++*static_cast<int*>(data);
  };
  EXPECT_EQ(autodeploy_engine_create(kArtifact.c_str(), &options, &engine), AUTODEPLOY_CANCELLED);
  EXPECT_EQ(calls, 1);
}

TEST_F(CApi, CancelsAndTellsOfItself) {
  const int64_t id = add(kPrompt, greedy(58));
  EXPECT_EQ(autodeploy_engine_cancel(engine_, id), AUTODEPLOY_OK);
  const Result result = finish(id);
  EXPECT_TRUE(result.reason == AUTODEPLOY_FINISH_CANCELLED || result.tokens.size() == 58U);
  EXPECT_EQ(autodeploy_engine_cancel(engine_, id), AUTODEPLOY_OK);
  autodeploy_outputs* outputs = nullptr;
  EXPECT_EQ(autodeploy_engine_wait(engine_, 0, &outputs), AUTODEPLOY_OK);
  EXPECT_EQ(outputs, nullptr);
  char* text = nullptr;
  ASSERT_EQ(autodeploy_engine_stats(engine_, &text), AUTODEPLOY_OK);
  EXPECT_NE(std::string(text).find("\"num_requests\":1"), std::string::npos) << text;
  autodeploy_string_free(text);
  ASSERT_EQ(autodeploy_engine_health(engine_, &text), AUTODEPLOY_OK);
  EXPECT_EQ(text, nullptr);
  const char* plan = nullptr;
  ASSERT_EQ(autodeploy_engine_plan(engine_, &plan), AUTODEPLOY_OK);
  EXPECT_NE(std::string(plan).find("\"max_seq_len\":64"), std::string::npos);
  EXPECT_EQ(autodeploy_engine_vocab_size(engine_), 40);
  add(kPrompt, greedy(58));  // destroyed while it runs
}

}  // namespace
