# Checkpoints and metrics.jsonl, which training resumes from, are not declared: Snakemake deletes declared outputs before
# it retries a job (but these: content.py). A finished run has no inputs: nothing that is made again concerns it.
rule train_model:
    input:
        unpack(
            lambda wildcards: PLAN.training_inputs(
                wildcards, workflow.dag_settings.forceall
            )
        ),
    output:
        weights=f"{RESULTS}/runs/{{experiment}}/seed{{seed}}/weights.safetensors",
        record=f"{RESULTS}/runs/{{experiment}}/seed{{seed}}/complete.json",
    log:
        f"{RESULTS}/logs/train_model/{{experiment}}_seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_model/{{experiment}}_seed{{seed}}.tsv"
    wildcard_constraints:
        experiment=PLAN.any_trained,
    conda:
        "../../envs/udpm.yaml"
    threads: PLAN.training_threads
    resources:
        **JOBS.training,
    params:
        usage=f"{RESULTS}/benchmarks/train_model/{{experiment}}_seed{{seed}}.jsonl",
        command=PLAN.training_command,
        config=PLAN.run_config,
        dataset=PLAN.dataset,
        cache=PLAN.cache,
        run=PLAN.run_folder,
    shell:
        "{params.command:q} --usage {params.usage:q} train --dataset {params.dataset:q} --cache {params.cache:q} --run {params.run:q}"
        " -- {params.config:q} > {log:q} 2>&1"


# Where training is `imported`: given weights become the run's.
rule import_weights:
    input:
        config=f"{RESULTS}/configs/{{experiment}}/seed{{seed}}.json",
        weights=PLAN.given_weights,
    output:
        weights=f"{RESULTS}/runs/{{experiment}}/seed{{seed}}/weights.safetensors",
        record=f"{RESULTS}/runs/{{experiment}}/seed{{seed}}/complete.json",
    log:
        f"{RESULTS}/logs/import_weights/{{experiment}}_seed{{seed}}.log",
    wildcard_constraints:
        experiment=PLAN.any_imported,
    conda:
        "../../envs/udpm.yaml"
    params:
        run=subpath(output.weights, parent=True),
    shell:
        "udpm import --run-config {input.config:q} --run {params.run:q} > {log:q} 2>&1"


rule sample_images:
    input:
        weights=PLAN.weights,
        config=f"{RESULTS}/configs/{{experiment}}/sampling.json",
        noise=PLAN.given_noise,
    output:
        images=f"{RESULTS}/samples/{{experiment}}/seed{{seed}}.npz",
        record=f"{RESULTS}/samples/{{experiment}}/seed{{seed}}.json",
        chain=f"{RESULTS}/samples/{{experiment}}/seed{{seed}}_chain.npz",
    log:
        f"{RESULTS}/logs/sample_images/{{experiment}}_seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/sample_images/{{experiment}}_seed{{seed}}.tsv"
    wildcard_constraints:
        experiment=PLAN.any_whole,
    conda:
        "../../envs/udpm.yaml"
    threads: lambda wildcards: PLAN.experiment(wildcards).sampling.threads
    resources:
        **JOBS.sampling,
    params:
        usage=f"{RESULTS}/benchmarks/sample_images/{{experiment}}_seed{{seed}}.jsonl",
    shell:
        "udpm --usage {params.usage:q} sample --config {input.config:q} --output {output.images:q} --chain {output.chain:q}"
        " -- {input.weights:q} > {log:q} 2>&1"


rule sample_shard:
    input:
        weights=PLAN.weights,
        config=f"{RESULTS}/configs/{{experiment}}/sampling.json",
        noise=PLAN.given_noise,
    output:
        images=f"{RESULTS}/samples/{{experiment}}/seed{{seed}}_{{part}}of{{parts}}.npz",
        record=f"{RESULTS}/samples/{{experiment}}/seed{{seed}}_{{part}}of{{parts}}.json",
    log:
        f"{RESULTS}/logs/sample_shard/{{experiment}}_seed{{seed}}_{{part}}of{{parts}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/sample_shard/{{experiment}}_seed{{seed}}_{{part}}of{{parts}}.tsv"
    wildcard_constraints:
        experiment=PLAN.any_sharded,
        part=r"\d+",
        parts=r"\d+",
    conda:
        "../../envs/udpm.yaml"
    threads: lambda wildcards: PLAN.experiment(wildcards).sampling.threads
    resources:
        **JOBS.sampling,
    params:
        usage=f"{RESULTS}/benchmarks/sample_shard/{{experiment}}_seed{{seed}}_{{part}}of{{parts}}.jsonl",
    shell:
        "udpm --usage {params.usage:q} sample --config {input.config:q} --shard {wildcards.part:q}/{wildcards.parts:q}"
        " --output {output.images:q} -- {input.weights:q} > {log:q} 2>&1"


rule sample_chain:
    input:
        weights=PLAN.weights,
        config=f"{RESULTS}/configs/{{experiment}}/sampling.json",
        noise=PLAN.given_noise,
    output:
        f"{RESULTS}/samples/{{experiment}}/seed{{seed}}_chain.npz",
    log:
        f"{RESULTS}/logs/sample_chain/{{experiment}}_seed{{seed}}.log",
    wildcard_constraints:
        experiment=PLAN.any_sharded,
    conda:
        "../../envs/udpm.yaml"
    threads: lambda wildcards: PLAN.experiment(wildcards).sampling.threads
    resources:
        **JOBS.figures,
    shell:
        "udpm sample --config {input.config:q} --chain {output:q} -- {input.weights:q} > {log:q} 2>&1"


# The images stay in the shards.
rule join_shards:
    input:
        PLAN.shards,
    output:
        f"{RESULTS}/samples/{{experiment}}/seed{{seed}}.json",
    log:
        f"{RESULTS}/logs/join_shards/{{experiment}}_seed{{seed}}.log",
    wildcard_constraints:
        experiment=PLAN.any_sharded,
    conda:
        "../../envs/udpm.yaml"
    shell:
        "udpm join --output {output:q} -- {input:q} > {log:q} 2>&1"


rule export_images:
    input:
        PLAN.samples,
    output:
        directory(f"{RESULTS}/images/{{experiment}}/seed{{seed}}"),
    log:
        f"{RESULTS}/logs/export_images/{{experiment}}_seed{{seed}}.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        samples=PLAN.sample_set,
        layout=lambda wildcards: PLAN.experiment(wildcards).sampling.images,
        format=lambda wildcards: PLAN.experiment(wildcards).sampling.image_format,
    shell:
        "udpm export --layout {params.layout:q} --format {params.format:q} --output {output:q}"
        " -- {params.samples:q} > {log:q} 2>&1"
