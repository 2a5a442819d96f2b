rule explore_latents:
    input:
        weights=f"{RESULTS}/runs/{{experiment}}/seed{{seed}}/weights.safetensors",
        config=f"{RESULTS}/configs/{{experiment}}/latents.json",
    output:
        f"{RESULTS}/latents/{{experiment}}/seed{{seed}}/{{kind}}.npz",
    log:
        f"{RESULTS}/logs/explore_latents/{{experiment}}_seed{{seed}}_{{kind}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/explore_latents/{{experiment}}_seed{{seed}}_{{kind}}.tsv"
    wildcard_constraints:
        kind="|".join(LATENTS),
    conda:
        "../../envs/udpm.yaml"
    threads: lambda wildcards: PLAN.experiment(wildcards).sampling.threads
    resources:
        **JOBS.figures,
    params:
        usage=f"{RESULTS}/benchmarks/explore_latents/{{experiment}}_seed{{seed}}_{{kind}}.jsonl",
        options=PLAN.latent_options,
    shell:
        "udpm --usage {params.usage:q} latents {wildcards.kind:q} --config {input.config:q} {params.options:q}"
        " --output {output:q} -- {input.weights:q} > {log:q} 2>&1"


rule render_latents:
    input:
        f"{RESULTS}/latents/{{experiment}}/seed{{seed}}/{{kind}}.npz",
    output:
        report(
            f"{RESULTS}/figures/{{experiment}}/seed{{seed}}/latents_{{kind}}.png",
            caption="../report/latents.rst",
            category="Figures",
            labels={
                "figure": "latents: {kind}",
                "experiment": "{experiment}",
                "seed": "{seed}",
            },
        ),
        multiext(
            f"{RESULTS}/figures/{{experiment}}/seed{{seed}}/latents_{{kind}}",
            ".svg",
            ".csv",
        ),
    log:
        f"{RESULTS}/logs/render_latents/{{experiment}}_seed{{seed}}_{{kind}}.log",
    wildcard_constraints:
        kind="|".join(LATENTS),
    conda:
        "../../envs/udpm.yaml"
    params:
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm figure latents --output {params.stem:q} -- {input:q} > {log:q} 2>&1"
