{{/* Names, labels and images. Every template here takes the context of this chart. */}}

{{- define "llm-internals.name" -}}
{{- default "llm-internals" .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "llm-internals.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "llm-internals.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "llm-internals.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "llm-internals.selectorLabels" -}}
app.kubernetes.io/name: {{ include "llm-internals.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "llm-internals.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "llm-internals.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Labels of a pod that has the sidecar: what monitors, policies and budgets select. */}}
{{- define "llm-internals.engineSelectorLabels" -}}
{{ include "llm-internals.selectorLabels" . }}
app.kubernetes.io/component: engine
{{- end }}

{{- define "llm-internals.fleetSelectorLabels" -}}
{{ include "llm-internals.selectorLabels" . }}
app.kubernetes.io/component: fleet
{{- end }}

{{/* (dict "image" {repository, tag, digest} "tag" what stands in when neither is given) */}}
{{- define "llm-internals.imageOf" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .tag .image.tag }}
{{- end -}}
{{- end }}

{{- define "llm-internals.image" -}}
{{- include "llm-internals.imageOf" (dict "image" .Values.image "tag" .Chart.AppVersion) }}
{{- end }}

{{/* Whether something whose custom resource may not be there is wanted: (dict "root" . "wanted" true|false|"auto"). */}}
{{- define "llm-internals.hasOperator" -}}
{{- if or (eq (toString .wanted) "true") (and (eq (toString .wanted) "auto") (.root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) -}}
yes
{{- end -}}
{{- end }}

{{/* Where runbooks are as rules and dashboards have it: `make runbooks` may have changed it. */}}
{{- define "llm-internals.runbooks" -}}
{{- $rules := .Files.Get "dashboards/rules.yml" | required "dashboards/rules.yml is not in the chart; package it from the repository, where helm/dashboards is a link" | fromYaml }}
{{- $first := first (first $rules.groups).rules }}
{{- trimSuffix (printf "%s.md" $first.alert) $first.annotations.runbook_url }}
{{- end }}

{{/* A number or word as the sidecar reads it: Helm holds 1000000 as a float and would write 1e+06. */}}
{{- define "llm-internals.scalar" -}}
{{- if kindIs "slice" . -}}
{{ join "," . }}
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end }}

{{/* Settings as environment: {flush_seconds: 2} is SIDECAR_FLUSH_SECONDS. */}}
{{- define "llm-internals.settings" -}}
{{- range $key, $value := . }}
- name: SIDECAR_{{ upper $key }}
  value: {{ include "llm-internals.scalar" $value | quote }}
{{- end }}
{{- end }}
