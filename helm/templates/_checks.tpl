{{/* What no schema can say: values that fit each by itself and not together. Each names the remedy. */}}

{{- define "llm-internals.check" -}}
{{- $engine := .Values.engine -}}
{{- if and $engine.enabled (not $engine.model) -}}
{{- fail "engine.model is empty: name the model that vLLM serves, or set engine.enabled=false to use this chart as a library" -}}
{{- end -}}
{{- if and $engine.enabled (eq .Values.sidecar.form "native") (semverCompare "<1.29.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "sidecar.form=native needs Kubernetes 1.29, and this is %s: set sidecar.form=classic" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- $ranks := mul (int $engine.tensorParallel) (int $engine.pipelineParallel) (int $engine.dataParallel) -}}
{{- if and $engine.enabled (ne (mod $ranks (int $engine.nodes)) 0) -}}
{{- fail (printf "engine.nodes=%d does not divide the %d ranks of tensorParallel x pipelineParallel x dataParallel: change one of them" (int $engine.nodes) $ranks) -}}
{{- end -}}
{{- if and .Values.fleet.enabled (not .Values.fleet.prometheus) -}}
{{- fail "fleet.prometheus is empty: give the address of the Prometheus that scrapes the sidecars, such as http://prometheus-operated.monitoring:9090" -}}
{{- end -}}
{{- if and .Values.fleet.enabled (not .Values.api.tokenSecret.name) -}}
{{- fail "fleet.enabled opens the sidecars' API to the pod network, so it must ask for a token: set api.tokenSecret.name to a Secret of 32 random bytes" -}}
{{- end -}}
{{- if and .Values.fleet.enabled (not $engine.enabled) (not .Values.fleet.query) -}}
{{- fail "fleet.query is empty and this chart has no engine to name: give a query with one series for each sidecar, such as llm_internals_build_info{namespace=\"serving\"}" -}}
{{- end -}}
{{- if and (eq .Values.baseline.from "url") (not .Values.baseline.sourceSecret.name) (not (and .Values.baseline.url .Values.baseline.sha256)) -}}
{{- fail "baseline.from=url needs baseline.url and baseline.sha256 (`sha256sum FILE`), or baseline.sourceSecret.name" -}}
{{- end -}}
{{- if and (eq .Values.baseline.from "volume") (not .Values.baseline.volume) -}}
{{- fail "baseline.from=volume needs baseline.volume, such as {persistentVolumeClaim: {claimName: baselines, readOnly: true}}" -}}
{{- end -}}
{{- if and $engine.apiKeySecret.name .Values.canary.keySecret.name (not .Values.canary.apiKeySecret.name) -}}
{{- fail "engine.apiKeySecret makes the server ask its clients for a key, and canaries have none: set canary.apiKeySecret to the same Secret" -}}
{{- end -}}
{{- range $engine.env -}}
{{- if and (eq .name "VLLM_PLUGINS") (not (contains "llm_internals_sidecar" (default "" .value))) -}}
{{- fail (printf "engine.env sets VLLM_PLUGINS=%s, so vLLM would not load the tap: add llm_internals_sidecar to it" (default "" .value)) -}}
{{- end -}}
{{- if and (eq .name "PYTHONPATH") (eq $.Values.tap.delivery "volume") -}}
{{- fail "engine.env sets PYTHONPATH, on which the tap lies: give your folders in tap.pythonPath, or bring the tap in the image (tap.delivery=image)" -}}
{{- end -}}
{{- end -}}
{{- end }}
