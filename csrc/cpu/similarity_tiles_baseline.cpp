#define S3H_TABLE kTilesBaseline
#include "similarity_tiles.inc"
