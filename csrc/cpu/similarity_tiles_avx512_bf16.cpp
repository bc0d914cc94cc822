#define S3H_TABLE kTilesAvx512Bf16
#define S3H_BF16_PAIRS
#include "similarity_tiles.inc"
