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
        LAYOUT.section(),
    log:
        LAYOUT.log("resolve_section/{experiment}_{section}"),
    wildcard_constraints:
        section="(selection_)?(sampling|scoring)|latents",
    conda:
        "../../envs/udpm.yaml"
    shell:
        "udpm resolve {wildcards.experiment:q} --part {wildcards.section:q} --output {output:q} > {log:q} 2>&1"


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
