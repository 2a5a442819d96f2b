# Work in progress lies beside the store, undeclared, so that a retry goes on where the job before it was stopped.
rule prepare_dataset:
    input:
        f"{RESULTS}/configs/datasets/{{dataset}}.json",
    output:
        f"{RESULTS}/datasets/{{dataset}}/dataset.json",
    log:
        f"{RESULTS}/logs/prepare_dataset/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/prepare_dataset/{{dataset}}.tsv"
    conda:
        "../../envs/udpm.yaml"
    threads: PLAN.preparation_workers
    params:
        usage=f"{RESULTS}/benchmarks/prepare_dataset/{{dataset}}.jsonl",
        folder=subpath(output[0], parent=True),
    shell:
        "udpm --usage {params.usage:q} prepare --output {params.folder:q} -- {input:q} > {log:q} 2>&1"


rule cache_levels:
    input:
        f"{RESULTS}/datasets/{{dataset}}/dataset.json",
    output:
        f"{RESULTS}/caches/{{dataset}}/cache.json",
    log:
        f"{RESULTS}/logs/cache_levels/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/cache_levels/{{dataset}}.tsv"
    conda:
        "../../envs/udpm.yaml"
    params:
        usage=f"{RESULTS}/benchmarks/cache_levels/{{dataset}}.jsonl",
        dataset=subpath(input[0], parent=True),
        folder=subpath(output[0], parent=True),
    shell:
        "udpm --usage {params.usage:q} cache --output {params.folder:q} -- {params.dataset:q} > {log:q} 2>&1"
