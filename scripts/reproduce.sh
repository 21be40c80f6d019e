#!/usr/bin/env bash
# The experiments of Michelis and Becker (2021), "On Linear Interpolation in the Latent Space of Deep
# Generative Models", on all of MNIST: trains what is missing, runs every experiment and ends in a
# table. From the root of the repository, after pip install '.[train]':
#
#   scripts/reproduce.sh                                  # downloads MNIST into data/
#   DATA=my/folder DOWNLOAD=false scripts/reproduce.sh    # MNIST as torchvision lays it out
#
# RUNS        folder for models and results (runs/paper)
# IMAGES      training images of each class (null, all 60,000 together)
# PAIRS       pairs, or starts, of each experiment (100)
# VGG_WEIGHTS weights of VGG-19: "published" (550 MB, downloaded once), a file, or "null" for random
#             ones; without it the experiment with VGG features is left out
#
# Models and results that are there already are kept: start it again after an interruption.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${RUNS:-runs/paper}
pairs=${PAIRS:-100}
data=(--data.root "${DATA:-data}" --data.download "${DOWNLOAD:-true}")
vae=$runs/mnist_16d/model.safetensors
plane=$runs/mnist_2d/model.safetensors
bigan=$runs/mnist_bigan/model.safetensors
SECONDS=0

# run NAME COMMAND [options]: one experiment into $runs/NAME, unless it is there already
run() {
    local name=$1 command=$2
    shift 2
    if [[ -f $runs/$name/summary.json ]]; then
        echo "== $name: there already"
        return
    fi
    echo "== $name"
    geolatent "$command" --config "configs/$command.yaml" "$@" "${data[@]}" \
        --out "$runs/$name" --overwrite
}

for model in mnist_2d mnist_16d mnist_bigan; do
    if [[ ! -f $runs/$model/summary.json ]]; then
        echo "== $model"
        geolatent train --config "configs/train_$model.yaml" --out "$runs/$model" \
            --data.per_class "${IMAGES:-null}" "${data[@]}"
    fi
done

run landscape landscape --model.checkpoint "$plane"
run worst_2d improvement --model.checkpoint "$plane" --n_pairs "$pairs"
run worst_16d improvement --model.checkpoint "$vae" --n_pairs "$pairs"
run prior_16d improvement --model.checkpoint "$vae" --n_pairs "$pairs" --pairs prior --steps null
run encoded_16d improvement --model.checkpoint "$vae" --n_pairs "$pairs" --pairs encoded --steps null
run logistic_2d interpolate --model.checkpoint "$plane" --n_pairs "$pairs"
run logistic_16d interpolate --model.checkpoint "$vae" --n_pairs "$pairs"
run vae_and_bigan compare --models.vae.checkpoint "$vae" --models.bigan.checkpoint "$bigan" \
    --n_pairs "$pairs"
run samples sample --model.checkpoint "$vae"
if [[ -n ${VGG_WEIGHTS:-} ]]; then
    # the mean alone: under features of thousands of outputs the spread costs twenty times as much
    run vgg_16d interpolate --model.checkpoint "$vae" --n_pairs 4 --features.kind vgg \
        --features.weights "$VGG_WEIGHTS" --metric.uncertainty false \
        --solver.tolerance 0.003 --length_tolerance 0.01
fi

geolatent report "$runs"
echo "$((SECONDS / 60)) min $((SECONDS % 60)) s"
