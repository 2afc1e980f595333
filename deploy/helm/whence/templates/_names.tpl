{{- define "whence.name" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "whence.selector" -}}
app.kubernetes.io/name: whence
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "whence.labels" -}}
{{ include "whence.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: whence
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "whence.headless" -}}
{{- include "whence.name" . -}}-metrics
{{- end -}}

{{/* Text where replicas share a journal, and nothing where each has its own. */}}
{{- define "whence.shared" -}}
{{- if eq .Values.mode "gateway" }}{{ .Values.postgresql.secret }}{{ end -}}
{{- end -}}
