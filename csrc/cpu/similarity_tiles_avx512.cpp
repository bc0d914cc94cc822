#define S3H_TABLE kTilesAvx512
#include "similarity_tiles.inc"
