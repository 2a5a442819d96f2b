# Resolved configurations: small complete files, the only configuration that later jobs read. They are rewritten only if
# a key that results depend on changes, so that other edits rerun nothing.


rule resolve_run:
    """Write the complete configuration of a run."""
    output:
        LAYOUT.run_config(),
    log:
        LAYOUT.log("resolve_run/{experiment}_seed{seed}"),
    conda:
        "../../envs/udpm.yaml"
    shell:
        "udpm resolve {wildcards.experiment:q} --part run --seed {wildcards.seed:q} --output {output:q} > {log:q} 2>&1"


rule resolve_section:
    """Write one section of an experiment's complete configuration."""
    output:
        LAYOUT.section(extractor=EXTRACTOR),
    log:
        LAYOUT.log("resolve_section/{experiment}_{section}{extractor}"),
    wildcard_constraints:
        section="(selection_)?(sampling|scoring)|latents",
    conda:
        "../../envs/udpm.yaml"
    params:
        extra=INPUTS.extractor_option,
    shell:
        "udpm resolve {wildcards.experiment:q} --part {wildcards.section:q} {params.extra:q} --output {output:q} > {log:q} 2>&1"


rule resolve_dataset:
    """Write the complete configuration of a data set."""
    output:
        LAYOUT.dataset_config(),
    log:
        LAYOUT.log("resolve_dataset/{dataset}"),
    conda:
        "../../envs/udpm.yaml"
    shell:
        "udpm resolve --dataset {wildcards.dataset:q} --output {output:q} > {log:q} 2>&1"


# Work in progress next to the store is not declared as output, so that a retry resumes it.
rule prepare_dataset:
    """Read, check and resize the images of a data set, once."""
    input:
        LAYOUT.dataset_config(),
    output:
        LAYOUT.dataset_record(),
    log:
        LAYOUT.log("prepare_dataset/{dataset}"),
    benchmark:
        LAYOUT.benchmark("prepare_dataset/{dataset}")
    conda:
        "../../envs/udpm.yaml"
    threads: JOBS.preparation_threads
    resources:
        **JOBS.cpus(JOBS.preparation_threads),
    params:
        usage=LAYOUT.usage("prepare_dataset/{dataset}"),
        folder=subpath(output[0], parent=True),
    shell:
        "udpm --usage {params.usage:q} prepare --output {params.folder:q} -- {input:q} > {log:q} 2>&1"


rule cache_levels:
    """Compute the downsampled images of all levels, once."""
    input:
        LAYOUT.dataset_record(),
    output:
        LAYOUT.cache_record(),
    log:
        LAYOUT.log("cache_levels/{dataset}"),
    benchmark:
        LAYOUT.benchmark("cache_levels/{dataset}")
    conda:
        "../../envs/udpm.yaml"
    params:
        usage=LAYOUT.usage("cache_levels/{dataset}"),
        dataset=subpath(input[0], parent=True),
        folder=subpath(output[0], parent=True),
    shell:
        "udpm --usage {params.usage:q} cache --output {params.folder:q} -- {params.dataset:q} > {log:q} 2>&1"


# Checkpoints and metrics.jsonl, which training resumes from, are not declared, since Snakemake deletes declared outputs
# before it retries a job (except those of KEPT in content.py). A finished run has no inputs, so that none can rerun it.
rule train_model:
    """Train a model, or resume its training."""
    input:
        unpack(lambda wildcards: INPUTS.training_inputs(wildcards, workflow.dag_settings.forceall)),
    output:
        weights=LAYOUT.weights(),
        record=LAYOUT.completion(),
    log:
        LAYOUT.log("train_model/{experiment}_seed{seed}"),
    benchmark:
        LAYOUT.benchmark("train_model/{experiment}_seed{seed}")
    wildcard_constraints:
        experiment=PLAN.pattern(lambda name: not PLAN.is_imported(name)),
    conda:
        "../../envs/udpm.yaml"
    threads: JOBS.training_threads
    resources:
        **JOBS.training,
    params:
        usage=LAYOUT.usage("train_model/{experiment}_seed{seed}"),
        command=JOBS.training_command,
        config=LAYOUT.run_config(),
        dataset=INPUTS.dataset,
        cache=INPUTS.cache,
        run=LAYOUT.run(),
    shell:
        "{params.command:q} --usage {params.usage:q} train --dataset {params.dataset:q} --cache {params.cache:q} --run {params.run:q}"
        " -- {params.config:q} > {log:q} 2>&1"


rule import_weights:
    """Make a run from given weights (`training: imported`)."""
    input:
        config=LAYOUT.run_config(),
        weights=INPUTS.given_weights,
    output:
        weights=LAYOUT.weights(),
        record=LAYOUT.completion(),
    log:
        LAYOUT.log("import_weights/{experiment}_seed{seed}"),
    wildcard_constraints:
        experiment=PLAN.pattern(PLAN.is_imported),
    conda:
        "../../envs/udpm.yaml"
    params:
        run=subpath(output.weights, parent=True),
    shell:
        "udpm import --run-config {input.config:q} --run {params.run:q} > {log:q} 2>&1"


rule sample_images:
    """Draw the samples of a run."""
    input:
        weights=INPUTS.weights,
        config=LAYOUT.section("sampling"),
        noise=INPUTS.noise,
    output:
        images=LAYOUT.samples(".npz"),
        record=LAYOUT.samples(".json"),
        chain=LAYOUT.samples("_chain.npz"),
    log:
        LAYOUT.log("sample_images/{experiment}_seed{seed}"),
    benchmark:
        LAYOUT.benchmark("sample_images/{experiment}_seed{seed}")
    wildcard_constraints:
        experiment=PLAN.pattern(lambda name: not PLAN.is_sharded(name)),
    conda:
        "../../envs/udpm.yaml"
    threads: JOBS.sampling_threads
    resources:
        **JOBS.sampling,
    params:
        usage=LAYOUT.usage("sample_images/{experiment}_seed{seed}"),
        extra=lambda wildcards, output: ["--chain", output.chain],
    shell:
        "udpm --usage {params.usage:q} sample --config {input.config:q} {params.extra:q} --output {output.images:q}"
        " -- {input.weights:q} > {log:q} 2>&1"


use rule sample_images as sample_shard with:
    output:
        images=LAYOUT.samples("_{part}of{parts}.npz"),
        record=LAYOUT.samples("_{part}of{parts}.json"),
    log:
        LAYOUT.log("sample_shard/{experiment}_seed{seed}_{part}of{parts}"),
    benchmark:
        LAYOUT.benchmark("sample_shard/{experiment}_seed{seed}_{part}of{parts}")
    wildcard_constraints:
        experiment=PLAN.pattern(PLAN.is_sharded),
        part=r"\d+",
        parts=r"\d+",
    params:
        usage=LAYOUT.usage("sample_shard/{experiment}_seed{seed}_{part}of{parts}"),
        extra=lambda wildcards: ["--shard", f"{wildcards.part}/{wildcards.parts}"],


# Milestones are not declared as outputs of training: jobs that read them depend on the run's final weights instead.
use rule sample_images as sample_milestone with:
    input:
        weights=LAYOUT.weights(),
        config=LAYOUT.section("selection_sampling"),
    output:
        images=LAYOUT.milestone_samples(".npz"),
        record=LAYOUT.milestone_samples(".json"),
    log:
        LAYOUT.log("sample_milestone/{experiment}_seed{seed}_{iteration}"),
    benchmark:
        LAYOUT.benchmark("sample_milestone/{experiment}_seed{seed}_{iteration}")
    wildcard_constraints:
        experiment=PLAN.pattern(),
    params:
        usage=LAYOUT.usage("sample_milestone/{experiment}_seed{seed}_{iteration}"),
        extra=lambda wildcards: ["--iteration", wildcards.iteration],


use rule sample_images as sample_best with:
    input:
        weights=LAYOUT.weights(),
        config=LAYOUT.section("sampling"),
        selection=LAYOUT.choice(),
        noise=INPUTS.noise,
    output:
        images=LAYOUT.samples("_best.npz"),
        record=LAYOUT.samples("_best.json"),
    log:
        LAYOUT.log("sample_best/{experiment}_seed{seed}"),
    benchmark:
        LAYOUT.benchmark("sample_best/{experiment}_seed{seed}")
    wildcard_constraints:
        experiment=PLAN.pattern(),
    params:
        usage=LAYOUT.usage("sample_best/{experiment}_seed{seed}"),
        extra=lambda wildcards, input: ["--selection", input.selection],


rule sample_chain:
    """Draw the images of the figure of denoising chains, for runs whose samples are drawn in shards."""
    input:
        weights=INPUTS.weights,
        config=LAYOUT.section("sampling"),
        noise=INPUTS.noise,
    output:
        LAYOUT.samples("_chain.npz"),
    log:
        LAYOUT.log("sample_chain/{experiment}_seed{seed}"),
    wildcard_constraints:
        experiment=PLAN.pattern(PLAN.is_sharded),
    conda:
        "../../envs/udpm.yaml"
    threads: JOBS.sampling_threads
    resources:
        **JOBS.figures,
    shell:
        "udpm sample --config {input.config:q} --chain {output:q} -- {input.weights:q} > {log:q} 2>&1"


rule join_shards:
    """Write the record of a sample set in shards."""
    input:
        INPUTS.shards,
    output:
        LAYOUT.sample_record(),
    log:
        LAYOUT.log("join_shards/{experiment}_seed{seed}"),
    wildcard_constraints:
        experiment=PLAN.pattern(PLAN.is_sharded),
    conda:
        "../../envs/udpm.yaml"
    shell:
        "udpm join --output {output:q} -- {input:q} > {log:q} 2>&1"


rule export_images:
    """Write the samples of a run as image files."""
    input:
        INPUTS.samples,
    output:
        directory(LAYOUT.images()),
    log:
        LAYOUT.log("export_images/{experiment}_seed{seed}"),
    conda:
        "../../envs/udpm.yaml"
    params:
        samples=INPUTS.sample_set,
        layout=lambda wildcards: PLAN.experiment(wildcards).sampling.images,
        format=lambda wildcards: PLAN.experiment(wildcards).sampling.image_format,
    shell:
        "udpm export --layout {params.layout:q} --format {params.format:q} --output {output:q}"
        " -- {params.samples:q} > {log:q} 2>&1"


rule explore_latents:
    """Show what the noise maps of a run's latents control."""
    input:
        weights=LAYOUT.weights(),
        config=LAYOUT.section("latents"),
    output:
        LAYOUT.latents(),
    log:
        LAYOUT.log("explore_latents/{experiment}_seed{seed}_{kind}"),
    benchmark:
        LAYOUT.benchmark("explore_latents/{experiment}_seed{seed}_{kind}")
    conda:
        "../../envs/udpm.yaml"
    threads: JOBS.sampling_threads
    resources:
        **JOBS.figures,
    params:
        usage=LAYOUT.usage("explore_latents/{experiment}_seed{seed}_{kind}"),
        options=INPUTS.latent_options,
    shell:
        "udpm --usage {params.usage:q} latents {wildcards.kind:q} --config {input.config:q} {params.options:q}"
        " --output {output:q} -- {input.weights:q} > {log:q} 2>&1"
