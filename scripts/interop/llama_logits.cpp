// What llama.cpp computes from a GGUF file for given token ids, every token's logits.
//
// Usage: llama_logits MODEL.gguf IDS.txt LOGITS.f32     one row of ids a line; f32, row after row, token after token
//
// Built against llama.cpp (check_llama.py says which version was used):
//   g++ -O2 -std=c++17 -I LLAMA/include -I LLAMA/ggml/include llama_logits.cpp $(find BUILD -name '*.a') -lpthread -fopenmp -o llama_logits
//
// llama.cpp built with -DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS (and linked with -lopenblas) decodes quantized weights to floats and multiplies floats
// where a batch has 32 tokens and more; built without, it rounds the activations of every such product to 8 bits. The first line on standard error says which.

#include "ggml-backend.h"
#include "llama.h"

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

int main(int argc, char ** argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: llama_logits MODEL.gguf IDS.txt LOGITS.f32\n");
        return 2;
    }
    llama_log_set([](ggml_log_level level, const char * text, void *) { if (level >= GGML_LOG_LEVEL_WARN) fputs(text, stderr); }, nullptr);
    llama_backend_init();
    fprintf(stderr, "products: %s\n", ggml_backend_dev_by_name("BLAS") ? "floats" : "8-bit activations");
    llama_model_params of_model = llama_model_default_params();
    // Weights repacked for the CPU's integer kernels would never reach the products of floats.
    of_model.use_extra_bufts = false;
    llama_model * model = llama_model_load_from_file(argv[1], of_model);
    if (!model) return 1;
    std::ifstream in(argv[2]);
    FILE * out = fopen(argv[3], "wb");
    std::string line;
    while (std::getline(in, line)) {
        std::istringstream words(line);
        std::vector<llama_token> ids;
        for (llama_token id; words >> id;) ids.push_back(id);
        if (ids.empty()) continue;
        llama_context_params params = llama_context_default_params();
        params.n_ctx = params.n_batch = params.n_ubatch = (uint32_t) ids.size();
        params.n_threads = params.n_threads_batch = 2;
        params.type_k = params.type_v = GGML_TYPE_F32;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        llama_context * context = llama_init_from_model(model, params);
        if (!context) return 1;
        llama_batch batch = llama_batch_init((int32_t) ids.size(), 0, 1);
        for (size_t i = 0; i < ids.size(); ++i) {
            batch.token[i] = ids[i];
            batch.pos[i] = (llama_pos) i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        batch.n_tokens = (int32_t) ids.size();
        if (llama_decode(context, batch) != 0) return 1;
        // A file without a tokenizer has its vocabulary in the metadata only.
        int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
        for (size_t i = 0; i < ids.size(); ++i) fwrite(llama_get_logits_ith(context, (int32_t) i), sizeof(float), vocab, out);
        llama_batch_free(batch);
        llama_free(context);
    }
    fclose(out);
    llama_model_free(model);
    return 0;
}
