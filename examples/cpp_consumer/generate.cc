// Streams 16 tokens after a prompt of token ids: generate ARTIFACT ID...
#include <autodeploy/autodeploy.hpp>
#include <cstdlib>
#include <iostream>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: generate ARTIFACT ID...\n";
    return 2;
  }
  try {
    std::vector<std::int64_t> prompt;
    for (int i = 2; i < argc; ++i) prompt.push_back(std::atoll(argv[i]));

    autodeploy::Engine engine(argv[1]);
    autodeploy::Params params;
    params.max_tokens = 16;
    params.temperature = 0;
    autodeploy::Request request = engine.add_request(prompt, params);
    while (auto output = request.next()) {
      for (std::int64_t token : output->token_ids) std::cout << token << " " << std::flush;
    }
    std::cout << "\n";
  } catch (const autodeploy::Exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
