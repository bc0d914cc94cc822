#define S3H_TABLE kTilesAvx2
#include "similarity_tiles.inc"
